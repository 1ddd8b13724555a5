"""A stand-in for `ssh` in the PATH: it reads the options of the real one and, as a real server
does, hands the remote command to a shell in another home, with an environment of its own. Tunnels
(-L) are real ones."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

EDGEVIT = Path(sys.executable).with_name("edgevit")
TIDY_S = 30.0

# The options of OpenSSH 9: those alone, and those with a word behind them.
STAND_IN = r"""#!/bin/sh
printf '%s\n' "$@" >><words>
while getopts 46AaCfGgKkMNnqsTtVvXxYyB:b:c:D:E:e:F:I:i:J:L:l:m:O:o:P:p:Q:R:S:W:w: option; do
    case $option in
        '?') exit 255 ;;
        L) <python> <forward> "$OPTARG" "$$" & ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { echo "usage: ssh destination command" >&2; exit 255; }
shift
if [ -s <failure> ]; then cat <failure> >&2; exit 255; fi
[ ! -s <before> ] || . <before>
cd <home> || exit 255
exec env -i HOME=<home> PATH=<path> SHELL=/bin/sh LANG=C sh -c "$*"
"""


@dataclass(frozen=True)
class FakeSsh:
    """`home` is the home over there. What stands in `failure` is all that ssh says; `before` is
    run by the login shell."""

    folder: Path
    home: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def failure(self) -> Path:
        return self.folder / "failure"

    @property
    def before(self) -> Path:
        return self.folder / "before"

    def words(self) -> list[str]:
        """Every word of every call."""
        file = self.folder / "words"
        return file.read_text().splitlines() if file.exists() else []

    def calls(self) -> int:
        return self.words().count("--")

    def agents(self) -> list[psutil.Process]:
        """The agents whose store is in that home."""
        return [p for p in psutil.process_iter() if self._is_agent(p)]

    def _is_agent(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            words = process.cmdline()
            return "agent" in words and any(w.startswith(f"{self.home}/") for w in words)
        return False


@contextmanager
def standing_in(folder: Path) -> Iterator[FakeSsh]:
    """A stand-in at folder/ssh/bin; at the end no agent that it started is left."""
    fake = FakeSsh(folder / "ssh", folder / "home of pi")
    fake.bin.mkdir(parents=True)
    fake.home.mkdir()
    text = STAND_IN.replace("<path>", "/usr/local/bin:/usr/bin:/bin")
    text = text.replace("<home>", shlex.quote(str(fake.home)))
    text = text.replace("<python>", shlex.quote(sys.executable))
    text = text.replace("<forward>", shlex.quote(str(Path(__file__).with_name("ssh_forward.py"))))
    for name in ("words", "failure", "before"):
        text = text.replace(f"<{name}>", shlex.quote(str(fake.folder / name)))
    program = fake.bin / "ssh"
    program.write_text(text)
    program.chmod(0o755)
    try:
        yield fake
    finally:
        for process in fake.agents():
            process.kill()
        until = time.monotonic() + TIDY_S
        while fake.agents() and time.monotonic() < until:
            time.sleep(0.05)

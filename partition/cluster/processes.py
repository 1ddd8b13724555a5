"""Processes that outlive who starts them: started, waited for, recognised, ended.

One is known by its number and the time of its start, and is never signalled by its number alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

import partition
from partition.cluster.state import ProcessState
from partition.errors import PartitionError

START_S = 120.0  # for a slow board that loads its models again
POLL_S = 0.05
KILL_S = 10.0  # after SIGKILL; a process that waits for a disk takes its time
LAST_WORDS = 400
# The system tells a process's start from the machine's, which it knows in whole seconds.
SAME_S = 2.0
# It waits for a line before it becomes the program. Who started it writes its number down first:
# killed between the two it leaves a closed pipe, and the program never runs.
GATE = 'read -r go && exec "$@" </dev/null'
UNWANTED = {"EDGEVIT_TOKEN_FILE"}  # an option of `edgevit agent`

Recorded = Callable[[ProcessState], None]


def python(module: str, *words: object) -> list[str]:
    """The command line of a module of ours; not shadowed by files of the working directory."""
    return [sys.executable, "-P", "-m", module, *map(str, words)]


def start(words: Sequence[str], folder: Path, log: str, recorded: Recorded) -> ProcessState:
    """Start a program in a session of its own; `recorded` is called before it runs.

    What it says on stderr is appended to folder/log, what it says on stdout is in the .json beside
    that. Raises PartitionError where that cannot be written.
    """
    file = folder / log
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as said, facts_file(file).open("wb") as facts:
            said.write(_heading(words))
            said.flush()
            process = subprocess.Popen(
                ["sh", "-c", GATE, "sh", *words],
                stdin=subprocess.PIPE, stdout=facts, stderr=said, cwd=folder, env=_environment(),
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise PartitionError(f"cannot start with the log {file}: {error.strerror}") from error
    # Ours to be waited for as long as we run; else it would stay as a zombie.
    threading.Thread(target=process.wait, daemon=True, name=f"wait for {process.pid}").start()
    assert process.stdin is not None
    with process.stdin as gate:
        try:
            created = psutil.Process(process.pid).create_time()
        except psutil.Error as error:
            raise PartitionError(
                f"it was ended as soon as it was started; its log: {file}"
            ) from error
        state = ProcessState(pid=process.pid, created=created, log=log)
        recorded(state)
        with suppress(BrokenPipeError):  # it was ended meanwhile, which who waits for it notices
            gate.write(b"go\n")
            gate.flush()
    return state


def wait_ready(
    process: ProcessState, folder: Path, cancelled: threading.Event, timeout_s: float = START_S
) -> dict[str, Any]:
    """The JSON object with which it says that it is ready, also where that was long ago.

    Raises PartitionError with its last words where it ended, says nothing in time, or `cancelled`
    is set.
    """
    log = folder / process.log
    end = time.monotonic() + timeout_s
    while True:
        lives = process_lives(process)
        facts = _facts(facts_file(log), process.pid)
        if facts is not None and lives:
            return facts
        if not lives:
            raise PartitionError(f"it ended before it was ready{last_words(log)}; its log: {log}")
        if time.monotonic() > end:
            raise PartitionError(
                f"it is not ready after {timeout_s:g} s{last_words(log)}; its log: {log}"
            )
        if cancelled.wait(POLL_S):
            raise PartitionError("it is started, and was not waited for")


def process_lives(process: ProcessState) -> bool:
    """Whether it is still the one that was started; of before a reboot it is not."""
    return _find(process) is not None


def end(process: ProcessState, grace_s: float) -> bool:
    """SIGTERM, and SIGKILL where it is there after grace_s still; whether there was one to end.

    Raises PartitionError where it survives that, or is not ours to end.
    """
    found = _find(process)
    if found is None:
        return False
    try:
        found.terminate()
        if not _gone(process, grace_s):
            found.kill()
            if not _gone(process, KILL_S):
                raise PartitionError(
                    f"process {process.pid} is there {KILL_S:g} s after it was killed; its machine "
                    "waits for a disk. Try again later"
                )
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied as error:
        raise PartitionError(f"process {process.pid} is another user's now") from error
    return True


def facts_file(log: Path) -> Path:
    """Where the process of a log says that it is ready."""
    return log.with_suffix(".json")


def last_words(log: Path) -> str:
    """': ERROR' or '; its last words: ...' since its last start; empty where it said nothing."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    starts = [number for number, line in enumerate(lines) if _HEADING in line]
    since = lines[starts[-1] + 1 if starts else 0 :]
    errors = [line.removeprefix("error: ") for line in since if line.startswith("error: ")]
    if errors:
        return f": {errors[-1]}"
    said = " ".join(" ".join(since).split())
    return f"; its last words: {said[-LAST_WORDS:]}" if said else ""


_HEADING = '"event": "started by edgevit cluster launch"'


def _heading(words: Sequence[str]) -> bytes:
    """A line between the starts that a log has seen."""
    line = {
        "event": "started by edgevit cluster launch",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(words),
    }
    return (json.dumps(line) + "\n").encode()


def _environment() -> dict[str, str]:
    """Ours, and where our packages are when they are not installed; its words say all else."""
    found = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    root = Path(partition.__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return found
    paths = [str(root), *filter(None, found.get("PYTHONPATH", "").split(os.pathsep))]
    return found | {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in paths)}


def _facts(file: Path, pid: int) -> dict[str, Any] | None:
    """What the process said; None where it is not all there, or is of another one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("pid") == pid else None


def _find(process: ProcessState) -> psutil.Process | None:
    """It, None where it has gone. psutil's own signals look again that it is still this one."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.created) < SAME_S
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's, so it is none of ours
        return None


def _gone(process: ProcessState, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while process_lives(process):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True

"""Run a script of ours on another machine over the `ssh` of the PATH, and read its answer.

ssh asks nobody anything (BatchMode): keys and host keys are arranged before. On its command line
there is only the host.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from partition.errors import PartitionError
from partition.placing.ssh_login import SshLogin

CONNECT_S = 10
OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_S}",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    # Forwardings of ~/.ssh/config are for people; a master would hold our pipes when we are done.
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ControlMaster=no",
)
LAST_WORDS = 400
FULL_KIB = 1024

_FAILURES: Sequence[tuple[str, str]] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that ~/.ssh/known_hosts has. If it was installed anew, remove "
        "the old key: ssh-keygen -R {place}",
    ),
    (
        "Host key verification failed",
        "its host key is not known here yet; log in once by hand and compare it: ssh {login}",
    ),
    (
        "Permission denied|Too many authentication failures",
        "it does not let us in without a password. Bring your key there: ssh-copy-id {login}; "
        "then `ssh {login} true` must ask for nothing",
    ),
    ("Could not resolve hostname", "no host is called so; check the spelling, or ~/.ssh/config"),
    ("Connection refused", "no ssh server listens there; turn it on, or give its 'port'"),
    (
        "timed out|No route to host|Network is unreachable|Host is down",
        "it cannot be reached; check that it is on and in this network",
    ),
    (
        "UNPROTECTED PRIVATE KEY|bad permissions",
        "others can read the private key, so ssh does not use it; chmod 600",
    ),
)


class Said:
    """The answer of a script: `word` is what became of it, `rest` the words behind that."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        lines = done.stdout.splitlines()
        told = [line.split()[1:] for line in lines if line.startswith("@edgevit ")]
        words = told[-1] if told else []
        if words[:1] == ["failed"]:
            words = words[1:]
        self.word = words[0] if words else ""
        self.rest = " ".join(words[1:])
        self.facts = self._facts(_marked(lines, "@facts "))
        self._log, self._disk = _marked(lines, "@log "), _marked(lines, "@df ")
        self._stderr = done.stderr

    def last_words(self) -> str:
        """': ERROR' as the agent gives it, or what its log ends with; empty where there is none."""
        if isinstance(self.facts.get("error"), str):
            return f": {self.facts['error']}"
        errors = [line.removeprefix("error: ") for line in self._log if line.startswith("error: ")]
        if errors:
            return f": {errors[-1][-LAST_WORDS:]}"
        said = " ".join(" ".join(self._log).split())
        return f"; its last words: {said[-LAST_WORDS:]}" if said else ""

    def errors(self) -> str:
        """What the script's own commands said."""
        lines = [line.strip() for line in self._stderr.splitlines() if line.strip()]
        return f": {lines[-1][-LAST_WORDS:]}" if lines else ""

    def full(self) -> str:
        """That the disk is full, where it is."""
        with suppress(IndexError, ValueError):
            if int(self._disk[-1].split()[3]) < FULL_KIB:
                return ": the disk there is full"
        return ""

    @staticmethod
    def _facts(lines: list[str]) -> dict[str, Any]:
        with suppress(ValueError):
            value = json.loads("\n".join(lines))
            if isinstance(value, dict):
                return value
        return {}


def run_script(login: SshLogin, script: str, timeout_s: float) -> Said:
    """Run a script over there. Raises PartitionError where it cannot be brought there."""
    if login.identity is not None and not login.identity.is_file():
        raise PartitionError(f"the private key {login.identity} for {login.host} is not there")
    try:
        done = subprocess.run(
            command_line(login), input=script, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise PartitionError(
            "there is no program 'ssh' in the PATH; install OpenSSH's client (apt install "
            "openssh-client)"
        ) from error
    except OSError as error:
        raise PartitionError(f"ssh cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise PartitionError(
            f"ssh to {login.host} did not come back within {timeout_s:g} s"
        ) from error
    if done.returncode != 0 and "@edgevit " not in done.stdout:
        raise PartitionError(_ssh_failed(login, done))
    return Said(done)


def command_line(login: SshLogin) -> list[str]:
    """ssh with its options and the host; the script comes over stdin."""
    options = [word for option in OPTIONS for word in ("-o", option)]
    if login.identity is not None:
        options += ["-o", "IdentitiesOnly=yes"]
    return ["ssh", "-T", *options, *_own_words(login), "--", login.host, "sh"]


def _own_words(login: SshLogin) -> list[str]:
    """What a person says as well, who logs in by hand."""
    words = [] if login.port is None else ["-p", str(login.port)]
    return words if login.identity is None else [*words, "-i", str(login.identity)]


def _ssh_failed(login: SshLogin, done: subprocess.CompletedProcess[str]) -> str:
    """What to say where ssh brought no script to run."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1][:LAST_WORDS] if lines else f"exit code {done.returncode}, and no word"
    words = [*_own_words(login), login.host]
    names = {"place": login.host.rpartition("@")[2], "login": shlex.join(words)}
    for pattern, advice in _FAILURES:
        if re.search(pattern, done.stderr, re.IGNORECASE):
            return f"ssh to {login.host}: {advice.format(**names)} ({last})"
    return f"ssh to {login.host} failed: {last}"


def _marked(lines: Sequence[str], mark: str) -> list[str]:
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]

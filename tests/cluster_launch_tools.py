"""A plan launched as a person does, its processes told from all others, and none left behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from agent_tools import channel_to
from coordinator_tools import Answer, TinyPlan, is_right, pictures, predict, write_plan

from partition.cluster.coordinator import CoordinatorOptions
from partition.cluster.launch import Launched, launch
from partition.cluster.state import RunState, folder_of, read_state
from partition.cluster.stop import stop

MARK = "EDGEVIT_TEST_CLUSTER"
OPTIONS = CoordinatorOptions(listen="127.0.0.1:0")
END_S = 30.0


def silent(name: str, text: str) -> None:
    """Nobody watches."""


@contextmanager
def marked(word: str) -> Iterator[None]:
    """All that is started in the block bears a mark; when it ends nothing with it may be left.

    What is left is ended, so that no test harms another one, and then is an error. A block inside
    another one has a mark of its own.
    """
    outer = os.environ.get(MARK)
    os.environ[MARK] = word
    try:
        yield
    finally:
        if outer is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = outer
        until = time.monotonic() + END_S
        while (left := running(word)) and time.monotonic() < until:
            time.sleep(0.05)
        said = [f"{p.pid} {' '.join(_words(p))[:200]}" for p in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert not said, f"processes are left: {said}"


def running(word: str) -> list[psutil.Process]:
    """All processes with a mark, engines included, but this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == word:
                found.append(process)
    return found


def servers(word: str) -> set[int]:
    """The numbers of the agents and coordinators among them."""
    return {
        process.pid
        for process in running(word)
        if {"agent", "partition.coordinator_main"} & set(_words(process))
    }


def waiting(word: str) -> list[psutil.Process]:
    """Those among them that do not run their own program yet."""
    return [process for process in running(word) if _words(process)[:1] == ["sh"]]


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@contextmanager
def stopped_at_the_end(plan: Path) -> Iterator[None]:
    """Whatever became of the block."""
    try:
        yield
    finally:
        if folder_of(plan).is_dir():
            stop(plan, silent)


@contextmanager
def ending(home: Path) -> Iterator[TinyPlan]:
    """A plan that nothing is left of."""
    with marked(str(home)):
        found = write_plan(home / "plan")
        with stopped_at_the_end(found.path):
            yield found


def launched(plan: TinyPlan, options: CoordinatorOptions = OPTIONS) -> Launched:
    """A launch in which nothing goes wrong."""
    found = launch(plan.path, options, silent)
    assert (found.problems, found.notes) == ([], [])
    return found


def state_of(plan: TinyPlan) -> RunState:
    """What is written down."""
    state = read_state(plan.path)
    assert state is not None
    return state


def pids(state: RunState) -> dict[str, int]:
    """Of the processes that are written down, by device; the coordinator's is '' ."""
    found = {name: d.process.pid for name, d in state.devices.items() if d.process is not None}
    return found | ({"": state.coordinator.process.pid} if state.coordinator else {})


def asked(plan: TinyPlan, address: str, seed: int = 3) -> Answer:
    """What a coordinator answers to a picture; the right thing, for what it says is missing."""
    x = pictures(1, seed)
    with channel_to(address) as channel:
        answer = predict(channel, x)
    assert is_right(plan, x, answer)
    return answer


def kill(pid: int) -> None:
    """As if it had crashed; gone when this returns."""
    process = psutil.Process(pid)
    process.kill()
    gone(process)


def gone(process: psutil.Process) -> None:
    """Wait until it has ended; a zombie has."""
    until = time.monotonic() + END_S
    with suppress(psutil.NoSuchProcess):  # as it is from one question to the next
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, f"{process} is still there"
            time.sleep(0.02)


def free_port() -> int:
    """One where nobody listens, though somebody may in a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

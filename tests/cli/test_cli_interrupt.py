"""Ctrl-C and other ends in the middle of a conversion: a word, no folder, no process left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cli_tools import TINY, finish, start, write_model

PATIENCE_S = 120


@pytest.fixture
def running(tmp_path: Path) -> Iterator[psutil.Popen]:
    """A conversion of two targets on one core: one worker runs, the other target waits."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    home = write_model(tmp_path / "home")
    process = start(
        *["convert", TINY, "--to", "coreml,onnx", "-o", "new/out"],
        cwd=home,
        env={"TMPDIR": str(tmp_path / "tmp")},
        preexec_fn=lambda: os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]),
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def wait_for(what: Callable[[], object], process: object) -> None:
    """Until `what` is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def workers_of(process: object) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [c for c in children if "converters.worker" in c.cmdline()]


def lowering(home: Path) -> bool:
    """Whether the workers have their jobs: the reference is written just before."""
    return any((home / "new").glob(".edgevit-out-*/new/reference.npz"))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "stage", ["while it loads", pytest.param("while it lowers", marks=pytest.mark.slow)]
)
def test_ctrl_c(running, tmp_path, stage):
    home = tmp_path / "home"
    wait_for(lambda: len(workers_of(running)) == 1, running)
    if stage == "while it lowers":
        wait_for(lambda: lowering(home), running)
    workers = workers_of(running)
    assert workers
    running.send_signal(signal.SIGINT)
    answer = finish(running, timeout=30)
    assert alive(workers) == []
    assert answer.code == 130 and answer.out == ""
    assert answer.err == "error: interrupted; nothing half-written was left behind\n"
    assert not (home / "new").exists()
    assert list((tmp_path / "tmp").glob("edgevit-*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_ended_tidies_up_too(running, tmp_path, number):
    """By the system's kill, or by closing the terminal."""
    wait_for(lambda: len(workers_of(running)) == 1, running)
    workers = workers_of(running)
    running.send_signal(number)
    answer = finish(running, timeout=30)
    assert alive(workers) == []
    assert answer.code == 128 + number
    assert not (tmp_path / "home" / "new").exists()
    assert list((tmp_path / "tmp").glob("edgevit-*")) == []

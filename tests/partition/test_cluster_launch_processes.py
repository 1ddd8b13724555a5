"""Processes that outlive who starts them, with small programs in the place of servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from agent_tools import ROOT, eventually
from cluster_launch_tools import gone, marked, running

from partition.cluster.processes import end, process_lives, start, wait_ready
from partition.cluster.state import ProcessState
from partition.errors import PartitionError

READY = "import json, os; print(json.dumps({'pid': os.getpid(), 'address': 'x'}), flush=True); "
SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
NEVER = threading.Event()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with marked(str(tmp_path)):
        yield tmp_path


def started(home: Path, program: str) -> ProcessState:
    return start([sys.executable, "-c", program], home, "logs/it.log", lambda process: None)


def test_it_is_ready_recognised_and_ended(home: Path) -> None:
    process = started(home, READY + SLEEP)
    facts = wait_ready(process, home, NEVER)
    assert facts == {"pid": process.pid, "address": "x"}
    assert wait_ready(process, home, NEVER) == facts  # and any time later
    assert process_lives(process)
    assert os.getsid(process.pid) == process.pid  # the terminal's Ctrl-C is not for it
    assert end(process, 10.0) and not process_lives(process)
    assert not end(process, 10.0)


def test_what_ignores_sigterm_is_killed(home: Path) -> None:
    process = started(home, STUBBORN + READY + SLEEP)
    wait_ready(process, home, NEVER)
    assert end(process, 0.3) and not process_lives(process)


def test_one_with_its_number_is_another_one(home: Path) -> None:
    process = started(home, READY + SLEEP)
    wait_ready(process, home, NEVER)
    other = process.model_copy(update={"created": process.created - 60})
    assert not process_lives(other) and not end(other, 10.0)
    with pytest.raises(PartitionError, match="ended before it was ready"):
        wait_ready(other, home, NEVER)  # whose facts these are not
    assert process_lives(process)
    end(process, 10.0)


def test_it_does_not_run_before_it_is_written_down(home: Path) -> None:
    touched = home / "touched"

    def fails(process: ProcessState) -> None:
        time.sleep(1)
        assert not touched.exists()
        raise PartitionError("the disk is full")

    program = f"import pathlib; pathlib.Path({str(touched)!r}).touch(); {SLEEP}"
    with pytest.raises(PartitionError, match="the disk is full"):
        start([sys.executable, "-c", program], home, "it.log", fails)
    eventually(lambda: not running(str(home)))
    assert not touched.exists()


def test_it_does_not_run_if_who_starts_it_is_killed_first(home: Path) -> None:
    touched = home / "touched"
    program = f"import pathlib; pathlib.Path({str(touched)!r}).touch(); {SLEEP}"
    starter = (
        "import os, signal, sys, pathlib; from partition.cluster.processes import start\n"
        "def die(process): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"start([sys.executable, '-c', {program!r}], pathlib.Path({str(home)!r}), 'it.log', die)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", starter], env=env, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    eventually(lambda: not running(str(home)))
    assert not touched.exists()


def test_the_log_is_kept_and_its_last_words_are_of_the_last_start(home: Path) -> None:
    process = started(home, "import sys; sys.exit('error: the first one failed')")
    with pytest.raises(PartitionError, match=r"ready: the first one failed; its log: .*it\.log"):
        wait_ready(process, home, NEVER)
    process = started(home, SLEEP)
    psutil.Process(process.pid).kill()
    with pytest.raises(PartitionError) as raised:
        wait_ready(process, home, NEVER)
    assert "first" not in str(raised.value)
    said = (home / "logs" / "it.log").read_text()
    assert "the first one failed" in said and said.count("started by edgevit") == 2


def test_it_is_waited_for_so_long_and_not_longer(home: Path) -> None:
    process = started(home, "import sys; sys.stderr.write('I load'); sys.stderr.flush(); " + SLEEP)
    eventually(lambda: "I load" in (home / "logs" / "it.log").read_text())
    with pytest.raises(PartitionError, match=r"not ready after 0\.2 s; its last words: I load"):
        wait_ready(process, home, NEVER, timeout_s=0.2)
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(PartitionError, match="not waited for"):
        wait_ready(process, home, stopping)
    assert process_lives(process)
    end(process, 10.0)


def test_who_started_it_has_no_zombie(home: Path) -> None:
    process = started(home, READY + SLEEP)
    wait_ready(process, home, NEVER)
    found = psutil.Process(process.pid)
    found.kill()
    gone(found)
    assert not process_lives(process)
    eventually(lambda: not psutil.pid_exists(process.pid))


def test_no_token_of_ours_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an option of `edgevit agent`, and would be one of every agent that is started."""
    monkeypatch.setenv("EDGEVIT_TOKEN_FILE", "/nowhere")
    process = started(
        home, "import os; assert 'EDGEVIT_TOKEN_FILE' not in os.environ; " + READY + SLEEP
    )
    wait_ready(process, home, NEVER)
    end(process, 10.0)

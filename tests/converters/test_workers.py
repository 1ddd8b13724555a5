"""Worker processes: they answer, die with their parent, and are ended with their children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from cli_tools import ROOT

from converters.pool import Pool
from converters.progress import Event
from converters.workers import Worker, _end


@pytest.fixture
def worker(tmp_path):
    """A worker for ONNX that waits for its job."""
    made = Worker.start("onnx", tmp_path / "onnx.log", tmp_path, threads=1)
    yield made
    made.stop()


def gone(pid: int, within_s: float = 20) -> bool:
    """Whether a process ends in time; one that nobody waited for counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_an_unknown_target_is_an_error_answer_and_the_log_has_the_traceback(tmp_path):
    log = tmp_path / "log.txt"
    worker = Worker.start("tensorrt", log, tmp_path, threads=1)
    answers = list(worker.run({}))
    worker.stop()
    assert answers == [{"error": "KeyError: 'tensorrt'", "disk": None}]
    assert "Traceback" in log.read_text()


def test_stop_at_any_time_and_twice(worker):
    descriptors = psutil.Process().num_fds()
    assert worker.process.poll() is None
    worker.stop()
    worker.stop()
    assert worker.process.returncode is not None
    assert psutil.Process().num_fds() == descriptors - 3  # its two pipes and its log


def test_a_killed_worker_gives_an_error_as_its_last_answer(worker):
    worker.process.kill()
    (answer,) = worker.run({})
    assert answer == {
        "error": "the onnx worker was ended by SIGKILL (as a system does that runs out of memory) "
        "before it was done"
    }
    assert _end(3) == "ended with code 3" and _end(-11) == "was ended by SIGSEGV"


def test_an_answer_cut_short_is_no_answer(tmp_path):
    """A process that dies within a line of JSON."""
    code = 'import os, sys; os.write(int(sys.argv[1]), b\'{"stage": "low\'); os._exit(3)'
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(write_end)], stdin=subprocess.PIPE, pass_fds=[write_end]
    )
    os.close(write_end)
    log = (tmp_path / "log").open("wb")
    worker = Worker("onnx", tmp_path / "log", process, os.fdopen(read_end), log)
    assert list(worker.run({})) == [
        {"error": "the onnx worker ended with code 3 before it was done"}
    ]


CHILD = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"


def test_the_workers_own_children_end_with_it(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, start_new_session=True
    )
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.02)
    read_end, write_end = os.pipe()
    os.close(write_end)
    log = (tmp_path / "log").open("wb")
    Worker("onnx", tmp_path / "log", process, os.fdopen(read_end), log).stop()
    assert gone(children[0].pid)


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from converters.workers import Worker
folder = Path(sys.argv[2])
worker = Worker.start("onnx", folder / "log", folder, threads=1)
print(worker.process.pid, flush=True)
for answer in worker.run({"folder": str(folder), "threads": 1, "program": str(folder / "fifo")}):
    print(answer, flush=True)
"""


def test_a_worker_does_not_outlive_its_parent(tmp_path):
    """Also in the middle of its work: here it waits for a program that never comes."""
    os.mkfifo(tmp_path / "fifo")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    assert "begin" in parent.stdout.readline()
    assert not gone(pid, within_s=0.5)
    parent.kill()
    parent.communicate()
    assert gone(pid)


def workers_of_this_process() -> list[int]:
    return [c.pid for c in psutil.Process().children() if "converters.worker" in c.cmdline()]


def test_leaving_the_pool_ends_workers_that_never_got_a_job(tmp_path):
    with Pool(["coreml", "onnx"], tmp_path, tmp_path, jobs=2) as pool:
        children = [
            c.pid for c in psutil.Process().children() if "converters.worker" in c.cmdline()
        ]
        assert len(children) == 2 and pool.order == ["coreml", "onnx"]
    assert all(gone(pid) for pid in children)


def test_a_pool_whose_second_worker_does_not_start_ends_the_first(tmp_path):
    (tmp_path / "onnx.log").mkdir()  # where the second wants to write
    with pytest.raises(IsADirectoryError), Pool(["coreml", "onnx"], tmp_path, tmp_path, jobs=2):
        pass
    assert workers_of_this_process() == []


def test_temporary_files_go_where_the_pool_says(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    worker = Worker.start("onnx", tmp_path / "log", scratch, threads=1)
    environment = psutil.Process(worker.process.pid).environ()
    worker.stop()
    assert environment["TMPDIR"] == str(scratch)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert json.dumps(str(ROOT))[1:-1] in environment["PYTHONPATH"]


def test_an_error_in_one_thread_does_not_wait_for_the_others(tmp_path):
    """The first target blocks on a program that never comes; the second one's listener raises."""
    os.mkfifo(tmp_path / "fifo")
    job = {"folder": str(tmp_path), "threads": 1}
    jobs = {
        "coreml": job | {"program": str(tmp_path / "fifo")},
        "onnx": job | {"program": "/gone.pt2"},
    }

    def fail(event: Event) -> None:
        if event.error is not None:
            raise ZeroDivisionError(event.target)

    with Pool(list(jobs), tmp_path, tmp_path, jobs=2) as pool:
        with pytest.raises(ZeroDivisionError, match="onnx"):
            pool.run(jobs, fail)
        assert workers_of_this_process() == []

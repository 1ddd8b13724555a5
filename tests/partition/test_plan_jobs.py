"""Jobs in processes of their own: news, errors, ends; what they leave."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from cli_tools import small_disk

from partition.errors import PartitionError
from partition.making import tasks
from partition.making.jobs import Folders, Job, JobFailed, LocalRunner
from partition.making.steps import Step, output_of
from partition.progress import Event, State, silent

PATIENCE_S = 60

TASKS = """
import os, time
from partition.errors import InfeasibleError

def write(settings, inputs, out, tell):
    tell(0.5, "half way")
    print("chatter of", settings["text"])
    before = "".join((p / "text").read_text() for p in inputs.values())
    (out / "text").write_text(before + settings["text"])

def infeasible(settings, inputs, out, tell):
    raise InfeasibleError("it does not fit")

def broken(settings, inputs, out, tell):
    raise ZeroDivisionError("a fault of ours")

def killed(settings, inputs, out, tell):
    print("before the end", flush=True)
    os.kill(os.getpid(), 9)

def fill(settings, inputs, out, tell):
    (out / "large").write_bytes(bytes(4 << 20))

def slow(settings, inputs, out, tell):
    (out / "begun").write_text("")
    time.sleep(300)
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Where jobs work, with tasks of the tests' own that their processes find too."""
    (tmp_path / "test_only_tasks.py").write_text(TASKS)
    site = tmp_path / "sitecustomize.py"
    names = ["write", "infeasible", "broken", "killed", "slow", "fill"]
    known = {name: f"test_only_tasks:{name}" for name in names}
    site.write_text(
        f"import threading\nfrom partition.making import tasks\ntasks.TASKS.update({known!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    found = Folders(tmp_path / "steps", tmp_path / "logs", tmp_path / "tmp")
    for folder in (found.steps, found.logs, found.temporary):
        folder.mkdir()
    return found


def test_steps_follow_one_another_and_tell(folders):
    first = Step("first", "write", {"text": "a"})
    second = Step("second", "write", {"text": "b"}, {"before": first})
    events: list[Event] = []
    runner = LocalRunner(folders, 2, 1)
    runner.run([Job("one", (first, second))], events.append)
    assert (output_of(second, folders.steps) / "text").read_text() == "ab"
    assert "chatter of a" in (folders.logs / "one.log").read_text()
    assert [(e.step, e.state, e.text) for e in events] == [
        ("first", State.RUNNING, ""),
        ("first", State.RUNNING, "half way"),
        ("first", State.DONE, ""),
        ("second", State.RUNNING, ""),
        ("second", State.RUNNING, "half way"),
        ("second", State.DONE, ""),
    ]
    events.clear()
    runner.run([Job("one", (first, second))], events.append)
    assert [(e.step, e.state) for e in events] == [
        ("first", State.REUSED),
        ("second", State.REUSED),
    ]


def test_a_part_that_is_done_is_not_done_again(folders):
    first = Step("first", "write", {"text": "a"})
    LocalRunner(folders, 1, 1).run([Job("one", (first,))], silent)
    (output_of(first, folders.steps) / "text").write_text("kept")
    second = Step("second", "write", {"text": "b"}, {"before": first})
    LocalRunner(folders, 1, 1).run([Job("one", (first, second))], silent)
    assert (output_of(second, folders.steps) / "text").read_text() == "keptb"


def test_an_error_of_ours_comes_back_as_it_was(folders):
    with pytest.raises(PartitionError, match=r"^it does not fit$") as found:
        LocalRunner(folders, 1, 1).run([Job("one", (Step("a", "infeasible"),))], silent)
    assert found.value.exit_code == 1


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("broken", ["ZeroDivisionError: a fault of ours"]),
        ("killed", ["signal SIGKILL before it was done", "before the end"]),
    ],
)
def test_a_job_that_breaks_says_where_its_log_is(folders, task, said):
    with pytest.raises(JobFailed) as found:
        LocalRunner(folders, 1, 1).run([Job("one", (Step("a", task),))], silent)
    for words in [*said, str(folders.logs / "one.log")]:
        assert words in str(found.value)
    assert [p.name for p in folders.steps.iterdir() if not p.name.startswith(".")] == []


def test_one_failure_ends_the_others_and_leaves_no_process(folders):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    jobs = [Job("slow", (Step("s", "slow"),)), Job("bad", (Step("b", "infeasible"),))]
    with pytest.raises(PartitionError, match="it does not fit"):
        LocalRunner(folders, 2, 1).run(jobs, silent)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert left == set()


def test_ctrl_c_ends_the_jobs(folders):
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def interrupt() -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not list(folders.steps.glob(".new-*/begun")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        LocalRunner(folders, 1, 1).run([Job("slow", (Step("s", "slow"),))], silent)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert left == set()


def test_a_full_disk_is_said_and_the_steps_before_it_stay(folders, tmp_path):
    try:
        with small_disk(tmp_path / "disk", "1m") as disk:
            (disk / "steps").mkdir()
            small = Folders(disk / "steps", folders.logs, folders.temporary)
            first, second = Step("first", "write", {"text": "a"}), Step("second", "fill")
            with pytest.raises(PartitionError, match="the disk is full; make room") as found:
                LocalRunner(small, 1, 1).run([Job("one", (first, second))], silent)
            assert found.value.exit_code == 2 and str(disk) in str(found.value)
            assert [p.name for p in small.steps.iterdir()] == [first.folder]
    except PermissionError as error:
        pytest.skip(str(error))


def test_every_task_that_a_step_names_is_there():
    for name in tasks.TASKS:
        assert callable(tasks.task_of(name))

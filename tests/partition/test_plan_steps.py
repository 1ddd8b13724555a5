"""Steps that are done once: what decides it, that they appear whole, who may work in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from partition.errors import PartitionError
from partition.making.steps import Step, carry_out, is_done, output_of, seconds_of
from partition.making.workspace import workspace

ROOT = Path(__file__).resolve().parents[2]


def told(share: float, text: str) -> None:
    """Nobody listens."""


def write_one(settings, inputs, out, tell) -> None:
    (out / "text").write_text(settings["text"] + "".join(p.name for p in inputs.values()))


def test_a_step_is_done_once_and_its_time_is_kept(tmp_path):
    step = Step("a", "write", {"text": "x"})
    assert not is_done(step, tmp_path)
    assert carry_out(step.order(), write_one, tmp_path, told)
    assert (output_of(step, tmp_path) / "text").read_text() == "x"
    assert seconds_of(step, tmp_path) >= 0

    def never(*_: object) -> None:
        raise AssertionError("it was done already")

    assert not carry_out(step.order(), never, tmp_path, told)


def test_what_goes_in_decides_the_digest():
    base = Step("a", "write", {"text": "x"}, {"one": Step("b", "write", {"text": "y"})})
    assert replace(base, settings={"text": "z"}).digest != base.digest
    assert replace(base, task="read").digest != base.digest
    other = Step("b", "write", {"text": "Y"})
    assert replace(base, inputs={"one": other}).digest != base.digest
    assert replace(base, inputs={"two": base.inputs["one"]}).digest != base.digest
    assert replace(base, free={"threads": 4}).digest == base.digest
    assert replace(base, free={"threads": 4}).order().settings == {"text": "x", "threads": 4}


def test_a_step_that_fails_leaves_nothing(tmp_path):
    def half(settings, inputs, out, tell) -> None:
        (out / "half").write_text("half")
        raise ValueError("no")

    step = Step("a", "write")
    with pytest.raises(ValueError, match="no"):
        carry_out(step.order(), half, tmp_path, told)
    assert list(tmp_path.iterdir()) == []


def test_a_run_finds_what_the_one_before_left_but_nothing_unfinished(tmp_path):
    out = tmp_path / "PLAN"
    with workspace(out, force=False) as space:
        step = Step("a", "write", {"text": "x"})
        carry_out(step.order(), write_one, space.folders.steps, told)
        (space.folders.steps / ".new-0123").mkdir()
        space.staged.mkdir()
    with workspace(out, force=False) as space:
        assert [p.name for p in space.folders.steps.iterdir()] == [step.folder]
        assert not space.staged.exists()


def test_the_plan_appears_by_one_rename_and_nothing_is_left(tmp_path):
    out = tmp_path / "PLAN"
    with workspace(out, force=False) as space:
        space.staged.mkdir()
        (space.staged / "plan.json").write_text('{"kind": "edgevit-plan", "n": 1}')
        assert not out.exists()
        space.publish(force=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["PLAN"]
    with (
        pytest.raises(PartitionError, match="exists already; give another folder, or --force"),
        workspace(out, force=False),
    ):
        pass
    with workspace(out, force=True) as space:
        assert "1" in (out / "plan.json").read_text(), (
            "the old one stays until the new one is there"
        )
        space.staged.mkdir()
        (space.staged / "plan.json").write_text('{"kind": "edgevit-plan", "n": 2}')
        space.publish(force=True)
    assert '"n": 2' in (out / "plan.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["PLAN"]


def test_a_kill_between_the_two_renames_brings_the_old_plan_back(tmp_path):
    out = tmp_path / "PLAN"
    old = tmp_path / "PLAN.partial" / "old"
    old.mkdir(parents=True)
    (old / "plan.json").write_text('{"kind": "edgevit-plan"}')
    (tmp_path / "PLAN.partial" / "partition.json").write_text("{}")
    with pytest.raises(PartitionError, match="exists already"), workspace(out, force=False):
        pass
    assert (out / "plan.json").is_file()


def test_only_plans_are_replaced(tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_text("a cat")
    with (
        pytest.raises(PartitionError, match="--force replaces plans only"),
        workspace(out, force=True),
    ):
        pass
    assert (out / "cat.jpg").is_file()


def test_a_folder_of_somebody_else_is_not_worked_in(tmp_path):
    (tmp_path / "PLAN.partial").mkdir()
    (tmp_path / "PLAN.partial" / "letter.txt").write_text("dear")
    with (
        pytest.raises(PartitionError, match="holds other things than an unfinished plan"),
        workspace(tmp_path / "PLAN", force=False),
    ):
        pass


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from partition.making.workspace import workspace\n"
        "with workspace(pathlib.Path(sys.argv[1]), force=False):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    out = tmp_path / "PLAN"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with (
            pytest.raises(PartitionError, match="another process is working in"),
            workspace(out, force=False),
        ):
            pass
    finally:
        other.communicate(timeout=30)
    with workspace(out, force=False):
        pass


def test_a_place_without_permission_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PartitionError, match=r"cannot write .*: a part of the path is a file"),
        workspace(tmp_path / "file" / "PLAN", force=False),
    ):
        pass

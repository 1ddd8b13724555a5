"""edgevit partition: what it refuses, and a plan made, cut off and taken up by the real command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from cli_tools import Answer, edgevit, finish, screen_of, start
from plan_tools import REF, TWO, write_model

from edgevit.cli.job_progress import drawn
from edgevit.data import open_dataset, prepare
from partition.fusion_files import FusionHead
from partition.making.steps import UNFINISHED
from partition.plan import check_files, read_plan
from partition.progress import Event, State
from runtime.bundle import read_bundle
from runtime.inputs import to_input
from runtime.sessions.base import open_session

PATIENCE_S = 240
QUICK = ["--epochs", "2", "--fusion-epochs", "2", "--threads", "1", "--seed", "3"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with smallvit.py, its checkpoint and two.yaml; not to be changed."""
    folder = write_model(tmp_path_factory.mktemp("trained"))
    (folder / "two.yaml").write_text(TWO)
    return folder


def words(trained: Path, out: str, *more: object) -> list[object]:
    """The words of the command, which runs in the folder of the model."""
    return [
        "partition", REF, "--weights", trained / "small.safetensors", "--data", "digits",
        "--cluster", trained / "two.yaml", "-o", out, *QUICK, *more,
    ]  # fmt: skip


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's module can be imported."""
    monkeypatch.syspath_prepend(str(trained))
    return trained


def refused(answer: Answer, code: int = 2) -> str:
    assert answer.code == code and answer.out == ""
    assert answer.err.startswith("error: ")
    return answer.err


def test_other_models_are_refused(cli, here, home):
    two = ["--data", "digits", "--cluster", here / "two.yaml", "-o", "PLAN"]
    said = refused(cli("partition", "smallvit:distilled", *two))
    assert "distilled DeiTs are not partitioned" in said
    said = refused(cli("partition", "tinynet:net", *two))
    assert "only plain ViTs are partitioned" in said
    said = refused(cli("partition", "vit_tiny", *two))
    assert "random weights" in said and "edgevit train" in said
    assert [p.name for p in home.iterdir() if p.name.startswith("PLAN")] == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "balance"], "no such split: 'balance'"),
        (["--split", "balance"], "Did you mean 'balanced'?"),
        (["--split", "groups.yaml"], "the data has no class 'ten'"),
        (["--split", "short.yaml"], "class 9 is in none"),
        (["--cluster", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--cluster", "many.yaml"], "10 classes cannot be split into 11 parts"),
        (["--data", "digit"], "no such data: 'digit'"),
        (["--keep", "4"], "cannot keep 4 of 3 heads"),
        (["--answer", "both"], "features"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_what_cannot_be_is_said(cli, here, home, more, said):
    (home / "groups.yaml").write_text("[[0, 1, 2], [3, ten]]")
    (home / "short.yaml").write_text("[[0, 1, 2], [3, 4, 5, 6, 7, 8]]")
    devices = ", ".join(f"{{name: d{i}, compute: 1}}" for i in range(11))
    (home / "many.yaml").write_text(f"devices: [{devices}]")
    assert said in refused(cli(*words(here, "PLAN"), *more))
    assert not (home / "PLAN").exists()


def test_an_infeasible_budget_names_what_binds(cli, here, home):
    (home / "small.yaml").write_text("devices: [{name: pi, compute: 1e9, memory: 30KB}]")
    said = refused(cli(*words(here, "PLAN", "--cluster", "small.yaml")), 1)
    assert "What binds is memory" in said and "31.09 KiB" in said and "29.30 KiB" in said
    assert not (home / "PLAN").exists()


def test_what_stands_there_is_not_touched(cli, here, home):
    (home / "PLAN").mkdir()
    (home / "PLAN" / "thesis.txt").write_text("years")
    assert "exists already" in refused(cli(*words(here, "PLAN")))
    assert "--force replaces plans only" in refused(cli(*words(here, "PLAN", "--force")))
    assert (home / "PLAN" / "thesis.txt").read_text() == "years"


def test_a_measured_device_that_is_not_there_is_named(cli, here, home):
    (home / "far.yaml").write_text(
        "devices: [{name: pi, compute: measured, address: '127.0.0.1:9'}]"
    )
    said = refused(cli(*words(here, "PLAN", "--cluster", "far.yaml")))
    assert "device 'pi' at 127.0.0.1:9 cannot be measured" in said
    assert "give its compute in the cluster file" in said


def test_a_bar_for_each_step_on_a_terminal(monkeypatch):
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(ours, "rb", buffering=0):
        # In the test itself: pytest's capture patches too.
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            with pytest.raises(ValueError, match="cut"), drawn(Path("PLAN")) as progress:
                progress(Event("sub0-prune", State.REUSED, 1.0))
                progress(Event("sub0-train", State.RUNNING, 0.5, "epoch [/1] of 2"))
                progress(Event("sub0-train", State.DONE, 1.0))
                progress(Event("sub0-convert", State.RUNNING, 0.5, "lower tflite"))
                raise ValueError("cut")
        seen = screen_of(ours)
    for words_ in ("sub0-prune (done before)", "sub0-train", "sub0-convert: lower tflite"):
        assert words_ in seen
    assert "What is done is kept in PLAN.partial: the same command goes on from there." in seen


@dataclass(frozen=True)
class Planned:
    """A plan by the real command, and what it said."""

    folder: Path
    answer: Answer

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "plan.json").read_text())
        return found


@pytest.fixture(scope="session")
def planned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    home = tmp_path_factory.mktemp("planned")
    answer = edgevit(*words(trained, home / "made" / "PLAN"), cwd=trained)
    assert answer.code == 0, answer.err
    return Planned(home / "made" / "PLAN", answer)


@pytest.mark.slow
def test_a_plan_keeps_to_its_budgets_and_says_so(planned):
    record = planned.record
    assert sorted(c for part in record["submodels"] for c in part["classes"]) == list(range(10))
    for device in record["devices"]:
        assert device["memory"] <= device["memory_limit"]
        assert device["energy"] is None or device["energy"] <= device["energy_limit"]
        held = [*device["submodels"], *device["replicas"]]
        sizes = [(planned.folder / name / "model.tflite").stat().st_size for name in held]
        assert sum(sizes) <= device["memory_limit"]
    # By their weights alone two sub-models of two heads fit on the larger device; as files not.
    assert sorted(part["geometry"]["heads"] for part in record["submodels"]) == [1, 3]
    assert {part["primary"] for part in record["submodels"]} == {"left", "right"}
    out = planned.answer.out
    assert out.splitlines()[-1] == f"Next: edgevit cluster launch {planned.folder}"
    assert record["digest"][:12] in out and "without sub0" in out
    assert sorted(p.name for p in planned.folder.parent.iterdir()) == ["PLAN"]


@pytest.mark.slow
def test_a_plan_is_whole_and_its_bundles_say_what_they_are(planned):
    plan = read_plan(planned.folder)
    check_files(plan)
    assert [d.name for d in plan.cluster().devices] == ["left", "right"]
    for part in plan.record.submodels:
        manifest = read_bundle(plan.bundle(part)).manifest
        assert manifest.classes == part.answer_values == part.geometry.embed_dim
        assert manifest.model.ref == f"{REF}/{part.name}"
        assert any("class token" in note for note in manifest.model.notes)
        assert manifest.artifacts["tflite"].verification.status == "passed"
        assert manifest.preprocessing == plan.record.preprocessing
    accuracy = plan.record.accuracy
    assert accuracy.served is not None
    assert accuracy.served.same_top1 == accuracy.served.pictures == 64
    assert accuracy.served.error_over_spread < 1e-4
    assert plan.record.fusion.error_over_spread < 1e-5
    assert accuracy.full > 60 and accuracy.fused > accuracy.full - 20
    assert json.loads((plan.path / "accuracy.json").read_text()) == accuracy.model_dump(mode="json")


@pytest.mark.slow
def test_the_artefacts_and_the_head_reach_the_accuracy_of_the_plan(planned):
    """Everything that a cluster would serve, by hand: engines, blocks side by side, the head."""
    plan = read_plan(planned.folder)
    test = open_dataset("digits", "test", size=32)
    sessions = [open_session(plan.bundle(part) / "model.tflite") for part in plan.record.submodels]
    blocks, labels = [], []
    for index in range(len(test)):
        picture, label = test[index]
        x = prepare(picture, 32, 32)
        blocks.append(np.concatenate([s.run(to_input(x, s.input)).ravel() for s in sessions]))
        labels.append(label)
    for session in sessions:
        session.close()
    guessed = FusionHead.load(plan.fusion)(np.stack(blocks)).argmax(1)
    top1 = 100 * float((guessed == np.array(labels)).mean())
    assert top1 == pytest.approx(plan.record.accuracy.fused, abs=0.6)  # two pictures of 359


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_to_the_same_plan(trained, planned, tmp_path):
    """Cut off in training, in conversion and in fusion; each run does only what is left."""
    out, partial = tmp_path / "PLAN", tmp_path / "PLAN.partial"
    steps = partial / "steps"
    for behind, number in (
        ("sub0-prune", signal.SIGKILL), ("sub1-train", signal.SIGKILL), ("fusion", signal.SIGINT),
    ):  # fmt: skip
        cut_off(trained, out, behind, number)
    shutil.copytree(steps, tmp_path / "kept", copy_function=os.link)  # by which files are known
    answer = finish(start(*words(trained, out, "--json"), cwd=trained), PATIENCE_S)
    assert answer.code == 0, answer.err
    found = answer.json()
    assert found["digest"] == planned.record["digest"]
    assert found["next"] == ["edgevit", "cluster", "launch", str(out)]
    check_files(read_plan(out))
    assert not partial.exists()
    for name in ("sub0", "sub1"):  # its bundles are the very files that a run before it made
        assert (out / name / "model.tflite").stat().st_nlink == 2


def cut_off(trained, out, behind, number):
    """Run until the step `behind` is done and another is under way; then signal the process."""
    steps = out.with_name("PLAN.partial") / "steps"
    process = start(*words(trained, out), cwd=trained)
    known = set(steps.glob(f"{UNFINISHED}*"))  # what the run before left is thrown away
    deadline = time.monotonic() + PATIENCE_S
    while not (any(steps.glob(f"{behind}-*")) and set(steps.glob(f"{UNFINISHED}*")) - known):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    cut = finish(process, PATIENCE_S)
    _, left = psutil.wait_procs(children, 30)
    assert left == [] and not out.exists()
    if number == signal.SIGINT:
        assert cut.code == 130
        assert "PLAN.partial: the same command goes on from there" in cut.err
    else:
        assert cut.code == -number


@pytest.mark.slow
def test_force_replaces_a_plan_and_logits_are_an_answer(trained, planned, tmp_path):
    more = ["--answer", "logits", "--split", "contiguous", "--keep", "1", "--force", "--json"]
    (tmp_path / "PLAN").mkdir()
    (tmp_path / "PLAN" / "plan.json").write_text('{"kind": "edgevit-plan"}')
    answer = edgevit(*words(trained, tmp_path / "PLAN", *more), cwd=trained)
    assert answer.code == 0, answer.err
    plan = read_plan(tmp_path / "PLAN")
    assert [part.classes for part in plan.record.submodels] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert plan.record.fusion.widths[0] == 12
    assert (plan.path / "sub1" / "labels.txt").read_text().split() == ["other", *"56789"]
    assert plan.digest != planned.record["digest"]

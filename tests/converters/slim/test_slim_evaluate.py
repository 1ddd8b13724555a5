"""Scores of subnets: what they are, side by side as one by one, and a search that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from slim_ground import DOTTED, SITE, evaluator, folders_in, ground, prepared, run, told
from slim_tiny import NAME, WHOLE, TinyFamily, TinyShape

from converters.jobs.steps import output_of
from converters.slim.candidates import as_json
from converters.slim.errors import SlimError
from converters.slim.evaluate import SCORE, scores_of
from converters.slim.families.base import Subnet
from converters.slim.families.registry import FAMILIES
from converters.slim.pictures import Part, Pictures, held_out
from edgevit.data import open_dataset

ROOT = Path(__file__).resolve().parents[3]
SMALL = Subnet(TinyShape((16, 24), (2, 1)), ((0, 2), (1,)))
PATIENCE_S = 240.0


@pytest.fixture(autouse=True)
def tiny_family(monkeypatch):
    monkeypatch.setitem(FAMILIES, NAME, DOTTED)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_score_is_that_of_the_inherited_network_with_settled_statistics(tmp_path):
    folders = folders_in(tmp_path)
    steps = prepared(folders)
    own = ground(folders, steps)
    (score,) = evaluator(folders, steps).score([SMALL], "")
    module = own.inherited(SMALL)
    images = torch.from_numpy(own.pictures.held).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = module((images - 0.5) / 0.25)
    labels = torch.from_numpy(own.pictures.held_labels)
    assert score.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert score.loss == pytest.approx(float(loss), rel=1e-5)
    assert score.params == sum(value.numel() for value in module.parameters())
    settled = torch.cat([x for x, _ in own.settling()])
    seen = module.stem(settled)
    assert torch.allclose(module.stem_norm.running_mean, seen.mean((0, 2, 3)), atol=1e-4)


def test_what_was_scored_is_not_scored_again_and_a_damaged_score_is_said(tmp_path):
    folders = folders_in(tmp_path)
    steps = prepared(folders)
    own = evaluator(folders, steps)
    (score,) = own.score([SMALL, SMALL], "")[:1]
    (path,) = folders.steps.glob(f"score-*/{SCORE}")
    path.write_text('{"top1": 12.5, "loss": 1.0, "params": 3}')
    assert own.score([SMALL], "")[0].top1 == 12.5 != score.top1
    path.write_text("{")
    with pytest.raises(SlimError, match=r"score\.json is damaged; remove"):
        own.score([SMALL], "")


@pytest.mark.slow
def test_processes_give_what_this_one_gives(tmp_path, monkeypatch, one_thread):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    paths = [str(tmp_path), str(ROOT), str(ROOT / "tests")]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    family = TinyFamily()
    subnets = [family.scaled(WHOLE, factor) for factor in (1.0, 0.7, 0.4)] + [SMALL]
    scores = {}
    for jobs in (1, 2):
        folders = folders_in(tmp_path / str(jobs))
        steps = prepared(folders)
        scores[jobs] = evaluator(folders, steps, jobs).score(subnets, "")
    assert scores[1] == scores[2]


def test_a_search_goes_on_where_it_was_cut_and_goes_the_same_way(tmp_path, one_thread):
    """Every score is a cut: it is let run to the n-th, again and again."""

    class Cut(Exception):
        pass

    whole = told(run(tmp_path / "whole"))

    place, cuts = tmp_path / "cut", 0
    while True:
        done = len(list((place / "steps").glob("score-*"))) if place.exists() else 0
        try:
            found = told(_run_until(place, done + 5, Cut))
            break
        except Cut:
            cuts += 1
    assert found == whole and cuts >= 3


def _run_until(place: Path, limit: int, cut: type[Exception]):
    """Run until there are `limit` scores."""
    from converters.slim import evaluate

    inner = evaluate.score_subnet

    def counted(settings, inputs, out, tell):
        if len(list((place / "steps").glob("score-*"))) >= limit:
            raise cut
        inner(settings, inputs, out, tell)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "score_subnet", counted)
        return run(place)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_the_same_way(tmp_path, one_thread):
    whole = told(run(tmp_path / "whole"))
    place = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "tests" / "slim_ground.py"), str(place)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for scores in (1, 7):
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})
        try:
            until = time.monotonic() + PATIENCE_S
            while len(list(place.glob("steps/score-*"))) < scores and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert told(run(place)) == whole


def test_held_out_pictures_are_in_no_training(tmp_path):
    data = open_dataset("digits")
    train, held = held_out(data, seed=3)
    assert set(train.indices) | set(held.indices) == set(range(len(data)))
    assert not set(train.indices) & set(held.indices)
    again, other = held_out(data, seed=3), held_out(data, seed=4)
    assert list(again[1].indices) == list(held.indices) != list(other[1].indices)
    with pytest.raises(SlimError, match="too few to hold some out"):
        held_out(Part(data, train.indices[:12]), seed=0)


def test_pictures_come_back_and_damage_is_said(tmp_path):
    folders = folders_in(tmp_path)
    steps = prepared(folders)
    folder = output_of(steps["pictures"], folders.steps)
    seen = Pictures.load(folder)
    assert seen.sha256 == steps["pictures"].settings["sha256"]
    (folder / "pictures.npz").write_bytes(b"PK no")
    with pytest.raises(SlimError, match="is damaged; remove"):
        Pictures.load(folder)


def test_scores_of_counts_every_picture_once():
    class Says(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 3) * 9.0

    x = torch.tensor([0, 1, 2, 0, 0]).view(5, 1, 1, 1).float()
    labels = torch.tensor([0, 1, 1, 0, 2])
    assert scores_of(Says(), [(x[:3], labels[:3]), (x[3:], labels[3:])])[0] == 60.0


def test_a_subnet_is_named_by_all_that_it_is():
    assert as_json(SMALL)["blocks"] == [[0, 2], [1]]
    other = Subnet(SMALL.shape, ((0, 1), (1,)))
    assert as_json(other) != as_json(SMALL)

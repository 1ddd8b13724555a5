"""A run that was stopped and resumed is the run that was not: step by step, bit by bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Bars, net, options

from edgevit.training import EpochRow, TrainingError, TrainingInterrupted, train
from edgevit.training.state import STATE

DATA = Bars(64, 1), Bars(30, 2)


class Losses:
    """Listens; asks to stop by a real signal after `stop_at` = (epoch, step)."""

    def __init__(self, stop_at: tuple[int, int] | None = None, number: int = 0) -> None:
        self.stop_at, self.number = stop_at, number
        self.of: list[tuple[int, int, float]] = []

    def __call__(self, event: object) -> None:
        if not isinstance(event, EpochRow):
            self.of.append((event.epoch, event.step, event.loss))
            if (event.epoch, event.step) == self.stop_at:
                signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses, object]:
    """The run that nothing stops."""
    out, losses = tmp_path_factory.mktemp("whole") / "out", Losses()
    result = train(net(), *DATA, options(), out, progress=losses)
    return out, losses, result


@pytest.mark.parametrize(
    ("stop_at", "number"),
    [((1, 1), signal.SIGINT), ((2, 3), signal.SIGTERM), ((3, 4), signal.SIGINT)],
)
def test_resumed_is_uninterrupted(whole, tmp_path, stop_at, number):
    out, (first, second) = tmp_path / "out", (Losses(stop_at, number), Losses())
    with pytest.raises(TrainingInterrupted, match="--resume goes on from there") as caught:
        train(net(), *DATA, options(), out, progress=first)
    assert caught.value.exit_code == 128 + number
    torch.rand(100)  # nothing may hang on torch's own random state
    other = net()
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()  # nor on the weights that come in
    result = train(other, *DATA, options(resume=True, threads=1), out, progress=second)
    assert len(second.of) < 16 and first.of + second.of == whole[1].of
    for name in ("model.safetensors", STATE):
        ours, theirs = load_file(out / name), load_file(whole[0] / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert result.best == whole[2].best
    for ours, theirs in zip(result.rows, whole[2].rows, strict=True):
        assert vars(ours) | {"seconds": 0} == vars(theirs) | {"seconds": 0}


def test_a_run_that_is_complete_gives_its_result_again(whole):
    told = Losses()
    result = train(net(), *DATA, options(resume=True), whole[0], progress=told)
    assert told.of == [] and result.best == whole[2].best and result.finished


def test_another_seed_is_another_run(whole, tmp_path):
    losses = Losses()
    train(net(), *DATA, options(seed=1), tmp_path / "out", progress=losses)
    assert losses.of[0] != whole[1].of[0]


def test_another_model_is_refused(whole):
    with pytest.raises(TrainingError, match=r"is of another model: .* heads\.1\.weight and 1 more"):
        train(net(heads=2), *DATA, options(resume=True), whole[0])
    with pytest.raises(TrainingError, match=r"exists already; .* --resume to go on"):
        train(net(), *DATA, options(), whole[0])


def test_other_options_are_refused(whole):
    with pytest.raises(TrainingError, match=r"lr was 0\.002, now 0\.01") as caught:
        train(net(), *DATA, options(resume=True, lr=0.01), whole[0])
    assert caught.value.exit_code == 2
    with pytest.raises(TrainingError, match="train_examples was 64, now 48"):
        train(net(), Bars(48, 1), DATA[1], options(resume=True), whole[0])


def test_a_damaged_state_is_refused(whole, tmp_path):
    state = tmp_path / "out" / STATE
    state.parent.mkdir(parents=True)
    state.write_bytes((whole[0] / STATE).read_bytes()[:2000])
    with pytest.raises(TrainingError, match=r"resume\.safetensors cannot be read"):
        train(net(), *DATA, options(resume=True), tmp_path / "out")
    state.write_bytes((whole[0] / "model.safetensors").read_bytes())
    with pytest.raises(TrainingError, match="is no state of edgevit train"):
        train(net(), *DATA, options(resume=True), tmp_path / "out")

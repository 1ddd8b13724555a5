"""Distillation: the loss by hand, its place in a run's identity, and what it teaches."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Bars, net, options
from torch import Tensor, nn

from edgevit.training import EpochRow, Teacher, TrainingError, TrainingInterrupted, train
from edgevit.training.teacher import divergence

DATA = Bars(64, 1), Bars(30, 2)


class Fixed(nn.Module):
    """The same logits for every picture."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_the_divergence_is_that_of_the_book():
    student, teacher, temperature = [1.0, 0.0, -2.0], [0.5, 2.0, 0.0], 2.0

    def softmax(logits: list[float]) -> list[float]:
        raised = [math.exp(value / temperature) for value in logits]
        return [value / sum(raised) for value in raised]

    p, q = softmax(teacher), softmax(student)
    by_hand = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = divergence(torch.tensor([student] * 3), torch.tensor([teacher] * 3), temperature)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_weight_mixes_the_two_losses_over_all_heads():
    logits, loss, x = torch.randn(4, 3), torch.tensor(0.7), torch.zeros(4, 3, 16, 16)
    own = Fixed([0.0, 1.0, 2.0])
    far = float(divergence(logits, own(x), 1.0))
    assert float(Teacher(own, 0.0, 1.0).mixed(loss, logits, x)) == pytest.approx(0.7)
    mixed = float(Teacher(own, 0.25, 1.0).mixed(loss, logits, x))
    assert mixed == pytest.approx(0.75 * 0.7 + 0.25 * far, rel=1e-5)
    same = float(Teacher(own, 0.25, 1.0).mixed(loss, (logits, own(x)), x))
    assert same == pytest.approx(0.75 * 0.7 + 0.25 * far / 2, rel=1e-5)


def test_all_weight_on_a_teacher_that_errs_teaches_its_error(tmp_path):
    """It always says class 2, whatever the labels say."""
    student = net()
    teacher = Teacher(Fixed([0.0, 0.0, 8.0]), weight=1.0, temperature=1.0)
    train(student, *DATA, options(epochs=8, lr=2e-2), tmp_path / "out", teacher=teacher)
    pictures = torch.stack([torch.rand(3, 16, 16) for _ in range(8)])
    assert student(pictures).argmax(1).tolist() == [2] * 8


def test_a_run_with_a_teacher_resumes_with_the_same_one_only(tmp_path):
    teacher = Teacher(net(heads=1), 0.5, 2.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(net(), *DATA, options(), whole, teacher=teacher)

    def stop(event: object) -> None:
        if not isinstance(event, EpochRow) and (event.epoch, event.step) == (2, 3):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        train(net(), *DATA, options(), cut, teacher=teacher, progress=stop)
    with pytest.raises(TrainingError, match=r"teacher_weight was 0\.5, now 0\.4"):
        train(net(), *DATA, options(resume=True), cut, teacher=Teacher(net(), 0.4, 2.0))
    with pytest.raises(TrainingError, match=r"teacher_sha256 was .*, now None"):
        train(net(), *DATA, options(resume=True), cut)
    train(net(), *DATA, options(resume=True), cut, teacher=teacher)
    ours, theirs = (load_file(Path(out) / "model.safetensors") for out in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("weight", "temperature", "said"),
    [(1.5, 2.0, "weight must be 0 to 1"), (0.5, 0.0, "temperature must be above 0")],
)
def test_a_teacher_that_makes_no_sense_is_refused(tmp_path, weight, temperature, said):
    with pytest.raises(TrainingError, match=said):
        train(net(), *DATA, options(), tmp_path / "o", teacher=Teacher(net(), weight, temperature))
    assert not (tmp_path / "o").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="the data has 3 classes"):
        train(net(), *DATA, options(), tmp_path / "o", teacher=Teacher(net(classes=4)))

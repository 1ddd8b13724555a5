"""A small trainer for classifiers, on torch and accelerate: AdamW, mixup, EMA, exact resume."""

from __future__ import annotations

from edgevit.training.loop import train
from edgevit.training.options import (
    Preprocess,
    TrainingError,
    TrainingFailed,
    TrainingInterrupted,
    TrainOptions,
)
from edgevit.training.progress import EpochRow, Progress, Step, silent
from edgevit.training.result import Best, Scores, TrainResult
from edgevit.training.teacher import Teacher

__all__ = [
    "Best",
    "EpochRow",
    "Preprocess",
    "Progress",
    "Scores",
    "Step",
    "Teacher",
    "TrainOptions",
    "TrainResult",
    "TrainingError",
    "TrainingFailed",
    "TrainingInterrupted",
    "silent",
    "train",
]

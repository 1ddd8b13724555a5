"""What a run tells while it goes. The command line draws it; a program may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`step` of `steps` of an epoch are done; epochs count from 1."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class EpochRow:
    """One epoch, as log.csv has it: accuracies in percent of the held-out data, losses in nats.

    train_loss is that of the smoothed and mixed targets, val_loss the plain one. lr is that of the
    last step. ema_top1 is None without a moving average.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    top1: float
    top5: float
    ema_top1: float | None
    seconds: float


Progress = Callable[[Step | EpochRow], None]


def silent(event: Step | EpochRow) -> None:
    """The default listener: nobody."""

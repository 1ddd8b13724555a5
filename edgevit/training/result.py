"""What a run has reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevit.training.progress import EpochRow


@dataclass(frozen=True)
class Scores:
    """Right answers out of `count` held-out examples, and their mean cross-entropy in nats."""

    count: int
    top1: int
    top5: int
    loss: float

    @property
    def top1_percent(self) -> float:
        return 100 * self.top1 / self.count

    @property
    def top5_percent(self) -> float:
        return 100 * self.top5 / self.count

    def better_than(self, other: Scores) -> bool:
        """More right answers, or as many with a smaller loss."""
        return (self.top1, -self.loss) > (other.top1, -other.loss)


@dataclass(frozen=True)
class Best:
    """Whose weights model.safetensors holds: the epoch (from 1), and whether it is the EMA's."""

    epoch: int
    ema: bool
    scores: Scores


@dataclass(frozen=True)
class TrainResult:
    """The end of a run; `finished` is False where the time limit ended it.

    seconds are those of the epochs, over all continuations. The module that was trained holds the
    best weights too, in eval mode.
    """

    out: Path
    best: Best
    rows: tuple[EpochRow, ...]
    finished: bool
    seconds: float
    notes: tuple[str, ...]

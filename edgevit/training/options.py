"""What a training run is told, and the errors it answers with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


class TrainingError(Exception):
    """Something a user can cause or mend; the command line prints it without a traceback.

    exit_code is 2 for bad usage or bad input and 1 for a run that failed on its way.
    """

    exit_code = 2


class TrainingFailed(TrainingError):  # noqa: N818  # what happened, as the user reads it
    """The run was fine to begin with and could not go on."""

    exit_code = 1


class TrainingInterrupted(TrainingError):  # noqa: N818
    """A signal stopped the run after a whole step, and its state was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Preprocess:
    """From a picture (H, W, 3) of bytes to what the model sees (3, height, width).

    height and width in pixels; mean and std apply to RGB in [0, 1]; crop_pct and interpolation are
    those of timm's evaluation.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"


# May differ between a run and its continuation: they do not change what comes out.
FREE = frozenset({"threads", "time_limit_s", "resume"})


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults suit a small network from scratch on a few thousand pictures.

    preprocess: None where the data gives float arrays that go into the model as they are.
    batch: pictures of one optimiser step, all processes together.
    lr: the peak learning rate, reached after `warmup_epochs` (at most a third of the run), then
    down a cosine to `lr_end` of it.
    weight_decay: AdamW's; not on norms, biases, tables and layer scales.
    label_smoothing: the share of a hard label that is spread over all classes.
    mixup: alpha of the Beta distribution the mixing weight is drawn from; 0 is off.
    ema_epochs: the window of the moving average of the weights, in epochs; 0 is off.
    clip: the largest gradient norm; 0 is off.
    crop_area: the least share of the largest fitting crop that a random crop keeps.
    crop_stretch: the most that a random crop changes the aspect.
    shift: the most that a picture is moved, as a share of its side; its edge is continued.
    flip: mirror half of the pictures; off, since digits and letters have a right way round.
    seed: of order, augmentation, mixup and dropout. The initial weights are the caller's.
    threads: CPU threads of torch; None leaves torch's own choice.
    time_limit_s: no epoch is begun that would not end within it; None for no limit.
    resume: go on with the run that `out` holds.
    facts: what train.json records beside all this (model and data references, say); a continuation
    must bring the same.
    """

    preprocess: Preprocess | None = None
    epochs: int = 30
    batch: int = 64
    lr: float = 2e-3
    lr_end: float = 0.01
    warmup_epochs: float = 3.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.2
    ema_epochs: float = 2.0
    clip: float = 1.0
    crop_area: float = 0.6
    crop_stretch: float = 1.2
    shift: float = 0.05
    flip: bool = False
    seed: int = 0
    threads: int | None = None
    time_limit_s: float | None = None
    resume: bool = False
    facts: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def check(self) -> None:
        """Raise TrainingError for a value that makes no sense."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                bound = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise TrainingError(f"{name} must be {bound}, got {value:g}")
        if self.lr <= 0:
            raise TrainingError(f"lr must be above 0, got {self.lr:g}")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, math.inf),
    ("batch", 1, math.inf),
    ("lr", 0, math.inf),
    ("lr_end", 0, 1),
    ("warmup_epochs", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("label_smoothing", 0, 1),
    ("mixup", 0, math.inf),
    ("ema_epochs", 0, math.inf),
    ("clip", 0, math.inf),
    ("crop_area", 0.01, 1),
    ("crop_stretch", 1, math.inf),
    ("shift", 0, 1),
    ("seed", 0, 2**32 - 1),
    ("threads", 1, math.inf),
    ("time_limit_s", 0, math.inf),
)

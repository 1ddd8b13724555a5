"""The learning rate of each step: a linear warm-up, then half a cosine (arXiv 1608.03983)."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    """The rate of step `step` (from 0) of `steps`.

    The first `warmup` steps rise to `peak` in equal parts; the rest falls to `end` times the peak,
    which the last step would reach were there one more.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share)))

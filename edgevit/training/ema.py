"""An exponential moving average of the weights, and of BatchNorm's statistics with them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """`module` is a copy in eval mode that follows another module with a window of `steps` steps.

    The window grows with the steps taken, so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, steps: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.steps = max(steps, 1.0)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module's weights after its step number `step` (from 0, over all epochs)."""
        weight = 1 - decay_at(step, self.steps)
        ours, theirs = self.module.state_dict(), module.state_dict()
        floats = [name for name, value in ours.items() if value.is_floating_point()]
        mine: list[Tensor] = [ours[name] for name in floats]
        torch._foreach_lerp_(mine, [theirs[name] for name in floats], weight)
        for name in ours.keys() - set(floats):  # counters of batches
            ours[name].copy_(theirs[name])


def decay_at(step: int, steps: float) -> float:
    """What is kept at step `step` (from 0): 1 - 1/steps in the end, less in the beginning."""
    return min(1 - 1 / steps, (1 + step) / (10 + step))

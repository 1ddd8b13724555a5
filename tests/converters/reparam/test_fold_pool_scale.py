"""EfficientFormer's pool mixer: g * (pool(x) - x)."""

from __future__ import annotations

import pytest
import torch
from fold_check import EXACT, POOL_SCALE, Lambda, fold, numbers
from torch import Tensor, nn


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 4, 1, 1)])
def test_scale_becomes_a_depthwise_convolution(shape: tuple[int, ...], include_pad: bool) -> None:
    def mix(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        return x + m.gamma.view(1, 4, 1, 1) * (m.pool(x) - x)

    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=include_pad)
    folded = fold(Lambda(mix, pool=pool, gamma=nn.Parameter(torch.empty(shape))), (4, 6, 6))
    assert folded.fired[POOL_SCALE] == 1
    assert folded.ops["mul"] == 0
    assert folded.ops["conv2d"] == 1
    assert folded.error <= EXACT


def test_a_scale_that_is_no_channel_scale_stays() -> None:
    model = Lambda(
        lambda m, x: m.g * (m.pool(x) - x),
        pool=nn.AvgPool2d(3, stride=1, padding=1),
        g=numbers(1, 4, 6, 1),
    )
    folded = fold(model, (4, 6, 6))
    assert folded.times(POOL_SCALE) == 0
    assert folded.ops["mul"] == 1
    assert folded.error <= EXACT

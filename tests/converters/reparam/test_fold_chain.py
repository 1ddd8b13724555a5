"""Linear maps in a row, as one map."""

from __future__ import annotations

import pytest
import torch
from fold_check import CHAIN, EXACT, NO_OPS, Lambda, fold, fold_as_is
from helpers import randomise
from torch import nn

ROWS = {
    "two linear layers": (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), (4, 6)),
    "three linear layers": (
        nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 5, bias=False)),
        (4, 6),
    ),
    "1x1 and 1x1": (nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 5, 1)), (4, 5, 6)),
    "1x1 and 1x1 of other groups": (
        nn.Sequential(nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 8, 1, groups=2)),
        (8, 5, 6),
    ),
    "1x1 with a bias, then an unpadded 3x3": (
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, stride=2)),
        (4, 8, 7),
    ),
    "1x1 without a bias, then a padded 3x3": (
        nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1)),
        (4, 8, 7),
    ),
    "strided 1x1, then a padded 3x3": (
        nn.Sequential(
            nn.Conv2d(4, 9, 1, stride=2, bias=False), nn.Conv2d(9, 5, 3, padding=1, dilation=2)
        ),
        (4, 9, 8),
    ),
    "1x3 with a bias, then 1x1": (
        nn.Sequential(nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.Conv2d(6, 5, 1, stride=2)),
        (4, 8, 7),
    ),
    "padded 3x3, then 1x1": (
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, dilation=1), nn.Conv2d(6, 4, 1)),
        (4, 8, 7),
    ),
    "depthwise 3x3, then depthwise 1x1": (
        nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), nn.Conv2d(6, 6, 1, groups=6)
        ),
        (6, 8, 7),
    ),
    "a row, then a column, of one channel wide": (
        nn.Sequential(
            nn.Conv2d(1, 9, (1, 3), padding=(0, 1), bias=False),
            nn.Conv2d(9, 1, (3, 1), padding=(1, 0)),
        ),
        (1, 6, 7),
    ),
    "1x1 with BatchNorm, and another": (
        nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        ),
        (4, 5, 6),
    ),
}


@pytest.mark.parametrize("form", ROWS)
def test_maps_in_a_row(form: str) -> None:
    model, shape = ROWS[form]
    before = sum(p.numel() for p in model.parameters())
    folded = fold(model, shape)
    assert folded.fired[CHAIN] >= 1
    assert sum(folded.ops.values()) == 1
    assert folded.stored <= before
    assert folded.error <= EXACT


def test_a_bias_of_zeros_does_not_hinder_padding() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1))
    model = randomise(model.eval(), 0).double()
    with torch.no_grad():
        model[0].bias.zero_()
    folded = fold_as_is(model, torch.randn(3, 4, 6, 6, dtype=torch.float64))
    assert folded.fired[CHAIN] == 1
    assert folded.error <= EXACT


POOLED = {
    "pixels, then 1x1": nn.Sequential(nn.AvgPool2d(1, stride=2), nn.Conv2d(4, 5, 1)),
    "pixels, then a padded 3x3": nn.Sequential(
        nn.MaxPool2d(1, stride=3), nn.Conv2d(4, 5, 3, padding=1)
    ),
    "3x3, then pixels": nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.AvgPool2d(1, stride=2)),
    "rows and columns apart": nn.Sequential(
        nn.AvgPool2d(1, stride=(2, 1)), nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1, groups=4)
    ),
}


@pytest.mark.parametrize("form", POOLED)
def test_a_pooling_of_one_pixel_becomes_a_stride(form: str) -> None:
    folded = fold(POOLED[form], (4, 11, 10))
    assert folded.fired[CHAIN] == 1
    assert folded.ops == {"conv2d": 1}
    assert folded.error <= EXACT


@pytest.mark.parametrize("pool", [nn.AvgPool2d(1), nn.MaxPool2d(1), nn.AvgPool1d(1, stride=1)])
def test_a_pooling_of_every_pixel_goes(pool: nn.Module) -> None:
    shape = (4, 6) if isinstance(pool, nn.AvgPool1d) else (4, 6, 6)
    folded = fold(Lambda(lambda m, x: m.pool(x.tanh()).sigmoid(), pool=pool), shape)
    assert folded.fired[NO_OPS] >= 1
    assert folded.ops == {"tanh": 1, "sigmoid": 1}
    assert folded.error <= EXACT

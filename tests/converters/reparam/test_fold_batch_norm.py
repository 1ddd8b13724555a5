"""BatchNorm into the linear map before it, and into those after it."""

from __future__ import annotations

import pytest
import torch
from fold_check import BN_NEXT, BN_PREVIOUS, EXACT, Lambda, fold, fold_as_is
from helpers import randomise
from torch import Tensor, nn

CONVS_BEFORE = {
    "1d": (nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)), (4, 9)),
    "2d": (nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (4, 7, 9)),
    "3d": (nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4)), (2, 4, 5, 6)),
    "no bias": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (4, 7, 9)),
    "grouped": (nn.Sequential(nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9)), (6, 7, 7)),
    "depthwise": (
        nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.BatchNorm2d(12)),
        (6, 7, 7),
    ),
    "named padding": (
        nn.Sequential(nn.Conv2d(4, 6, (3, 4), padding="same", dilation=2), nn.BatchNorm2d(6)),
        (4, 9, 9),
    ),
    "no affine": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False, eps=1e-3)),
        (4, 7, 7),
    ),
    "linear": (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,)),
    "linear without bias": (nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)), (5,)),
}


@pytest.mark.parametrize("form", CONVS_BEFORE)
def test_into_the_map_before(form: str) -> None:
    model, shape = CONVS_BEFORE[form]
    folded = fold(model, shape)
    assert folded.fired[BN_PREVIOUS] == 1
    assert folded.ops["batch_norm"] == 0
    assert folded.error <= EXACT


def test_two_in_a_row() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5))
    folded = fold(model, (3, 6, 6))
    assert folded.fired[BN_PREVIOUS] == 2
    assert folded.error <= EXACT


def test_a_shared_convolution_keeps_its_own_weights_elsewhere() -> None:
    """One Conv2d used twice, one use normalised: folding may not touch the other use."""
    model = Lambda(
        lambda m, x: torch.cat([m.norm(m.conv(x)), m.conv(x.flip(-1))], 1),
        conv=nn.Conv2d(3, 5, 3),
        norm=nn.BatchNorm2d(5),
    )
    folded = fold(model, (3, 6, 6))
    assert folded.fired[BN_PREVIOUS] == 1
    assert folded.ops["conv2d"] == 2
    assert folded.error <= EXACT


READERS_AFTER = {
    "1x1 convolution": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1)), (4, 5, 5)),
    "unpadded 3x3": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), (4, 5, 5)),
    "grouped": (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=3)), (6, 5, 5)),
    "depthwise": (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6)), (6, 5, 5)),
    "1x1 with named padding": (
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same", bias=False)),
        (4, 5, 5),
    ),
    "linear": (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6)), (4,)),
    "linear without bias": (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False)), (4,)),
    "mean, then linear": (
        Lambda(
            lambda m, x: m.head(m.norm(x).mean((2, 3))),
            norm=nn.BatchNorm2d(4),
            head=nn.Linear(4, 6),
        ),
        (4, 5, 5),
    ),
    "mean that keeps its dimensions": (
        Lambda(
            lambda m, x: m.head(m.norm(x).mean((-1, -2), keepdim=True).flatten(1)),
            norm=nn.BatchNorm2d(4),
            head=nn.Linear(4, 6),
        ),
        (4, 5, 5),
    ),
    "adaptive pool": (
        nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)),
        (4, 5, 5),
    ),
    "adaptive pool, one dimension": (
        nn.Sequential(nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 6)),
        (4, 9),
    ),
    "tokens": (
        Lambda(
            lambda m, x: m.head(m.norm(x).flatten(2).transpose(1, 2)),
            norm=nn.BatchNorm2d(4),
            head=nn.Linear(4, 6),
        ),
        (4, 5, 3),
    ),
}


@pytest.mark.parametrize("form", READERS_AFTER)
def test_into_the_map_after(form: str) -> None:
    model, shape = READERS_AFTER[form]
    folded = fold(model, shape)
    assert folded.fired[BN_NEXT] == 1
    assert folded.ops["batch_norm"] == 0
    assert folded.error <= EXACT


def test_into_several_maps_after() -> None:
    def read_thrice(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        parts = m.one(y), m.two(y), m.head(y.mean((2, 3)))
        return torch.cat([part.flatten(1) for part in parts], 1)

    model = Lambda(
        read_thrice,
        norm=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 3, 1),
        two=nn.Conv2d(4, 2, 1, groups=2),
        head=nn.Linear(4, 5),
    )
    folded = fold(model, (4, 5, 5))
    assert folded.fired[BN_NEXT] == 1
    assert folded.ops["batch_norm"] == 0
    assert folded.error <= EXACT


def test_before_a_padded_convolution_only_where_the_shift_is_zero() -> None:
    """beta = mean * s leaves a scale alone, which zero padding does not see."""
    model = randomise(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)), 0)
    norm = model[0]
    with torch.no_grad():
        norm.bias.zero_()
        norm.running_mean.zero_()
    folded = fold_as_is(model.eval().double(), torch.randn(3, 4, 6, 6, dtype=torch.float64))
    assert folded.fired[BN_NEXT] == 1
    assert folded.error <= EXACT


def test_behind_flattened_tokens() -> None:
    """LeViT's linear layer: its BatchNorm1d works on (B * N, C)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        return m.norm(y.flatten(0, 1)).reshape_as(y)

    folded = fold(Lambda(forward, fc=nn.Linear(6, 4, bias=False), norm=nn.BatchNorm1d(4)), (5, 6))
    assert folded.fired[BN_PREVIOUS] == 1
    assert folded.ops == {"linear": 1}
    assert folded.error <= EXACT


def test_over_a_part_of_the_channels() -> None:
    """Only the rows that the norm sees are scaled and shifted."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y, z = m.conv(x).split([3, 2], 1)
        return torch.cat([z, m.norm(y)], 1)

    folded = fold(Lambda(forward, conv=nn.Conv2d(4, 5, 3), norm=nn.BatchNorm2d(3)), (4, 6, 6))
    assert folded.fired[BN_PREVIOUS] == 1
    assert folded.ops["batch_norm"] == 0
    assert folded.error <= EXACT

"""Linear branches over one input, added, as one map."""

from __future__ import annotations

import pytest
from fold_check import BN_PREVIOUS, EXACT, PARALLEL, RESIDUAL, Lambda, fold
from torch import Tensor, nn


def test_two_averaged_heads() -> None:
    model = Lambda(
        lambda m, x: (m.head(x) + m.head_dist(x)) / 2,
        head=nn.Linear(6, 4),
        head_dist=nn.Linear(6, 4),
    )
    folded = fold(model, (6,))
    assert folded.fired[PARALLEL] == 1
    assert folded.ops == {"linear": 1}
    assert folded.error <= EXACT


@pytest.mark.parametrize("biases", [(True, False), (False, True), (False, False)])
def test_two_heads_with_and_without_bias(biases: tuple[bool, bool]) -> None:
    model = Lambda(
        lambda m, x: m.one(x) + m.two(x),
        one=nn.Linear(6, 4, bias=biases[0]),
        two=nn.Linear(6, 4, bias=biases[1]),
    )
    folded = fold(model, (6,))
    assert folded.fired[PARALLEL] == 1
    assert folded.error <= EXACT


def test_two_normalised_heads() -> None:
    """SHViT's distilled head: BatchNorm and a linear map, twice, averaged."""
    model = Lambda(
        lambda m, x: (m.one(x) + m.two(x)) / 2,
        one=nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)),
        two=nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)),
    )
    folded = fold(model, (6,))
    assert folded.fired[PARALLEL] == 1
    assert folded.ops == {"linear": 1}
    assert folded.error <= EXACT


def test_overparameterised_branches() -> None:
    """Three 3x3 convolutions with BatchNorm over one input (MobileOne's kxk branches)."""

    def branch() -> nn.Module:
        conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(6))

    model = Lambda(
        lambda m, x: m.one(x) + m.two(x) + m.three(x),
        one=branch(),
        two=branch(),
        three=branch(),
    )
    folded = fold(model, (4, 7, 7))
    assert folded.fired[BN_PREVIOUS] == 3
    assert folded.fired[PARALLEL] == 2
    assert folded.ops == {"conv2d": 1}
    assert folded.error <= EXACT


IDENTITIES = {
    "depthwise 3x3": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 6)),
    "depthwise 7x7 without bias": (
        nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False),
        (4, 9, 9),
    ),
    "grouped": (nn.Conv2d(6, 6, 3, padding=1, groups=3), (6, 5, 5)),
    "dense": (nn.Conv2d(4, 4, 3, padding=1), (4, 6, 6)),
    "dense 1x1": (nn.Conv2d(4, 4, 1), (4, 6, 6)),
    "1x1 with valid padding": (nn.Conv2d(4, 4, 1, padding="valid"), (4, 6, 6)),
    "not square": (nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4), (4, 6, 7)),
    "dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), (4, 7, 7)),
    "named padding": (nn.Conv2d(4, 4, 3, padding="same", dilation=3, groups=2), (4, 7, 7)),
    "1d": (nn.Conv1d(4, 4, 3, padding=1), (4, 9)),
    "3d": (nn.Conv3d(4, 4, 3, padding=1, groups=4), (4, 3, 4, 5)),
    "linear": (nn.Linear(6, 6), (5, 6)),
    "convolution and BatchNorm": (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)),
        (4, 6, 6),
    ),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("form", IDENTITIES)
def test_residual(form: str, swapped: bool) -> None:
    branch, shape = IDENTITIES[form]

    def add(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        return x + m.branch(x) if swapped else m.branch(x) + x

    folded = fold(Lambda(add, branch=branch), shape)
    assert folded.fired[RESIDUAL] == 1
    assert folded.ops["add"] == 0
    assert folded.error <= EXACT


def test_residual_in_place() -> None:
    def add(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        x += m.branch(x)
        return x

    folded = fold(Lambda(add, branch=nn.Conv2d(4, 4, 3, padding=1, groups=4)), (4, 6, 6))
    assert folded.fired[RESIDUAL] == 1
    assert folded.ops == {"sigmoid": 1, "conv2d": 1}
    assert folded.error <= EXACT


def test_repvit_form() -> None:
    """BN(dw3x3BN(x) + x): the residual goes into the depthwise map, the outer norm after it."""
    model = Lambda(
        lambda m, x: m.outer(m.inner(m.conv(x)) + x),
        conv=nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        inner=nn.BatchNorm2d(4),
        outer=nn.BatchNorm2d(4),
    )
    folded = fold(model, (4, 6, 6))
    assert folded.fired[BN_PREVIOUS] == 2
    assert folded.ops == {"conv2d": 1}
    assert folded.error <= EXACT

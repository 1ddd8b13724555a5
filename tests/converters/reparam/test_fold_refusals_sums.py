"""Sums and rows of linear maps that are no single one: each stays as it is."""

from __future__ import annotations

import pytest
import torch
from fold_check import (
    BN_PREVIOUS,
    CHAIN,
    EXACT,
    PARALLEL,
    RESIDUAL,
    Lambda,
    assert_stays,
    fold,
    fold_as_is,
)
from helpers import randomise
from torch import Tensor, nn

NO_IDENTITY = {
    "stride 2": (nn.Conv2d(4, 4, 1, stride=2), (4, 1, 1)),
    "no tap at the centre": (nn.Conv2d(4, 4, 2, dilation=2, padding=1, groups=4), (4, 5, 5)),
    "wrong padding, broadcast": (nn.Conv2d(4, 4, 3), (4, 3, 3)),
    "linear, broadcast": (nn.Linear(6, 1), (5, 6)),
    "channels, broadcast": (nn.Conv2d(4, 1, 1), (4, 5, 5)),
    "channels of the input broadcast": (nn.Conv2d(1, 4, 3, padding=1), (1, 5, 5)),
    "reflected": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 5, 5)),
    "padded less than dilated, broadcast": (
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4),
        (4, 3, 3),
    ),
}


@pytest.mark.parametrize("form", NO_IDENTITY)
def test_residual_around_a_map_without_an_identity(form: str) -> None:
    branch, shape = NO_IDENTITY[form]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        return x + m.branch(x)

    folded = fold(Lambda(forward, branch=branch), shape)
    assert_stays(folded, "add", 1, RESIDUAL)


def test_residual_scaled_by_alpha() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        return torch.add(x, m.conv(x), alpha=2)

    folded = fold(Lambda(forward, conv=nn.Conv2d(4, 4, 1)), (4, 5, 5))
    assert_stays(folded, "add", 1, RESIDUAL)


def test_residual_whose_branch_is_read_elsewhere() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        y = m.conv(x)
        return (x + y) * y.sigmoid()

    folded = fold(Lambda(forward, conv=nn.Conv2d(4, 4, 1)), (4, 5, 5))
    assert_stays(folded, "add", 1, RESIDUAL)


def test_residual_from_another_value() -> None:
    model = Lambda(lambda m, x: x.tanh() + m.conv(x.sigmoid()), conv=nn.Conv2d(4, 4, 1))
    assert_stays(fold(model, (4, 5, 5)), "add", 1, RESIDUAL)


# On 3x3 maps, where an output of 1x1 is added to one of 3x3 by broadcasting.
UNLIKE = {
    "stride, broadcast": (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, stride=3)),
    "padding, broadcast": (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3)),
    "outputs, broadcast": (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1)),
}

# Exact, but one convolution would have more multiply-adds than the two.
DEARER = {
    "a row and a column": (
        nn.Conv2d(3, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
    ),
    "a dense 1x1 and a depthwise 3x3": (
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
    ),
    "dilations that do not nest": (
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 4, 3, padding=3, dilation=3),
    ),
    "two and three groups": (nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 6, 1, groups=3)),
}


@pytest.mark.parametrize("form", UNLIKE | DEARER)
def test_branches_that_stay_apart(form: str) -> None:
    one, two = (UNLIKE | DEARER)[form]
    model = Lambda(lambda m, x: m.one(x) + m.two(x), one=one, two=two)
    folded = fold(model, (one.in_channels, 3, 3))
    assert_stays(folded, "conv2d", 2, PARALLEL)


def test_branches_whose_strides_differ() -> None:
    """Of one output size on this map, and yet they look at different places."""
    model = Lambda(
        lambda m, x: m.one(x) + m.two(x),
        one=nn.Conv2d(3, 4, 1, stride=3),
        two=nn.Conv2d(3, 4, 1, stride=4),
    )
    assert_stays(fold(model, (3, 9, 9)), "conv2d", 2, PARALLEL)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, stride=2), nn.MaxPool2d(2, stride=2)])
def test_branch_beside_a_pooling_of_more_than_a_pixel(pool: nn.Module) -> None:
    conv = nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3)
    model = Lambda(lambda m, x: m.conv(x) + m.pool(x), conv=conv, pool=pool)
    folded = fold(model, (3, 6, 6))
    assert_stays(folded, "add", 1, PARALLEL, RESIDUAL)


def test_branch_beside_a_norm_that_trains() -> None:
    model = Lambda(
        lambda m, x: m.conv(x) + m.norm(x),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        norm=nn.BatchNorm2d(3),
    )
    model = randomise(model, 0).double().train()
    folded = fold_as_is(model, torch.randn(3, 3, 6, 6, dtype=torch.float64))
    assert_stays(folded, "batch_norm", 1, PARALLEL)


def test_branch_beside_a_norm_that_is_read_elsewhere() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return (m.conv(x) + y) * y.sigmoid()

    model = Lambda(forward, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3))
    assert_stays(fold(model, (3, 6, 6)), "batch_norm", 1, PARALLEL)


def test_part_of_a_sum_that_is_read_elsewhere() -> None:
    """a + b is read on its own, so c may not join them."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.one(x) + m.three(x).sigmoid()
        return (y + m.two(x)) * y.tanh()

    one, two, three = (nn.Conv2d(3, 4, 1) for _ in range(3))
    model = Lambda(forward, one=one, two=two, three=three)
    assert_stays(fold(model, (3, 5, 5)), "conv2d", 3, PARALLEL)


def test_branches_over_different_inputs() -> None:
    model = Lambda(
        lambda m, x: m.one(x.sigmoid()) + m.two(x.tanh()),
        one=nn.Conv2d(3, 4, 3),
        two=nn.Conv2d(3, 4, 3),
    )
    assert_stays(fold(model, (3, 6, 6)), "conv2d", 2, PARALLEL)


def test_branch_read_elsewhere() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.one(x)
        return torch.cat([y + m.two(x), y.relu()], 1)

    folded = fold(Lambda(forward, one=nn.Conv2d(3, 4, 3), two=nn.Conv2d(3, 4, 3)), (3, 6, 6))
    assert_stays(folded, "conv2d", 2, PARALLEL)


def test_branches_added_with_alpha() -> None:
    model = Lambda(
        lambda m, x: torch.add(m.one(x), m.two(x), alpha=2),
        one=nn.Linear(6, 4),
        two=nn.Linear(6, 4),
    )
    assert_stays(fold(model, (6,)), "linear", 2, PARALLEL)


def test_one_shared_convolution_behind_two_norms() -> None:
    """One weight, two calls, each with its own norm: each call gets its own copy."""
    model = Lambda(
        lambda m, x: m.one(m.conv(x)) * m.two(m.conv(x.tanh())),
        conv=nn.Conv2d(3, 4, 3),
        one=nn.BatchNorm2d(4),
        two=nn.BatchNorm2d(4),
    )
    folded = fold(model, (3, 6, 6))
    assert folded.fired[BN_PREVIOUS] == 2
    assert folded.error <= EXACT


CHAINS = {
    "a bias before padding": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 3, padding=1)),
        (3, 6, 6),
    ),
    "a kernel before padding": (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 3, 1, padding=1)),
        (3, 6, 6),
    ),
    "a bottleneck": (nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)), (8, 5, 5)),
    "depthwise, then dense": (
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1)),
        (6, 5, 5),
    ),
    "two 3x3": (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), (3, 7, 7)),
    "an activation between": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)),
        (3, 5, 5),
    ),
}


@pytest.mark.parametrize("form", CHAINS)
def test_maps_in_a_row_that_stay_two(form: str) -> None:
    model, shape = CHAINS[form]
    assert_stays(fold(model, shape), "conv2d", 2, CHAIN)


def test_maps_in_a_row_with_a_reader_between() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.one(x)
        return m.two(y) * y.sigmoid()

    folded = fold(Lambda(forward, one=nn.Linear(6, 6), two=nn.Linear(6, 6)), (5, 6))
    assert_stays(folded, "linear", 2, CHAIN)


def test_maps_in_a_row_over_different_dimensions() -> None:
    """The linear layer works on the width, the convolution on the channels."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 4))
    folded = fold(model, (4, 4, 4))
    assert folded.times(CHAIN) == 0
    assert (folded.ops["conv2d"], folded.ops["linear"]) == (1, 1)
    assert folded.error <= EXACT


def test_maps_in_a_row_that_are_both_used_again() -> None:
    """Their weights would stay, and the product would only be added to them."""
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    model = Lambda(lambda m, x: m.two(m.one(x)) * m.two(m.one(x.tanh())), one=one, two=two)
    assert_stays(fold(model, (5, 6)), "linear", 4, CHAIN)


def test_a_value_written_into_between_two_maps() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        y = m.one(x)
        x.view(1, 4, 36).sigmoid_()
        return torch.cat([m.two(y), x], 1)

    model = Lambda(forward, one=nn.Conv2d(4, 4, 1), two=nn.Conv2d(4, 4, 1))
    folded = fold(model, (4, 6, 6))
    assert_stays(folded, "conv2d", 2, CHAIN)


def test_a_pooling_of_more_than_a_pixel_before_a_map() -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1))
    folded = fold(model, (3, 6, 6))
    assert_stays(folded, "avg_pool2d", 1, CHAIN)

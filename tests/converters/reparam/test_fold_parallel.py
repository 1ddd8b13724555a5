"""Linear branches over one input, added, as one map."""

from __future__ import annotations

import pytest
import torch
from fold_check import (
    BN_PREVIOUS,
    EXACT,
    PARALLEL,
    RESIDUAL,
    Lambda,
    fold,
    fold_as_is,
    numbers,
)
from helpers import randomise
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


# Two branches, and the operator, kernel, groups, padding and dilation of the one that is left.
PAIRS = {
    "3x3 and 1x1": (
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), (3, 3), 1, [1, 1], [1, 1],
    ),
    "strided 3x3 and 1x1": (
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2), (3, 3), 1, [1, 1],
        [1, 1],
    ),
    "5x5 and 1x3": (
        nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), (5, 5), 1, [2, 2],
        [1, 1],
    ),
    "7x7 and dilated 3x3": (
        nn.Conv2d(3, 4, 7, padding=3), nn.Conv2d(3, 4, 3, padding=3, dilation=3), (7, 7), 1, [3, 3],
        [1, 1],
    ),
    "dilated 3x3 and 1x1": (
        nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(3, 4, 1), (3, 3), 1, [2, 2], [2, 2],
    ),
    "dense and grouped": (
        nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1, groups=2), (1, 1), 1, [0, 0], [1, 1],
    ),
    "groups that nest": (
        nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.Conv2d(8, 16, 1, groups=4), (3, 3), 2, [1, 1],
        [1, 1],
    ),
    "dense and depthwise of two per channel": (
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 3), 1, [1, 1],
        [1, 1],
    ),
    "depthwise 7x7 and 3x3": (
        nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4), (7, 7), 4,
        [3, 3], [1, 1],
    ),
    "strided pixels beside a strided 3x3": (
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.AvgPool2d(1, stride=2), (3, 3), 4,
        [1, 1], [1, 1],
    ),
    "strided pixels by a maximum": (
        nn.Conv2d(4, 4, 3, stride=3, padding=1, groups=2), nn.MaxPool2d(1, stride=3), (3, 3), 2,
        [1, 1], [1, 1],
    ),
    "depthwise and BatchNorm": (
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), (3, 3), 4, [1, 1], [1, 1],
    ),
    "dense and BatchNorm": (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), (1, 1), 1, [0, 0], [1, 1]),
    "dense and scale": (
        nn.Conv2d(4, 4, 1), Lambda(lambda m, x: m.s * x, s=numbers(4, 1, 1)), (1, 1), 1, [0, 0],
        [1, 1],
    ),
    "named padding": (
        nn.Conv2d(4, 4, 2, padding="same"), nn.Conv2d(4, 4, 1), (2, 2), 1, "same", [1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("form", PAIRS)
def test_branches_of_different_shapes(form: str, minus: bool) -> None:
    one, two, kernel, groups, padding, dilation = PAIRS[form]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.tanh()
        return m.two(x) - m.one(x) if minus else m.one(x) + m.two(x)

    folded = fold(Lambda(forward, one=one, two=two), (one.in_channels, 8, 7))
    assert folded.fired[PARALLEL] == 1
    assert folded.ops == {"tanh": 1, "conv2d": 1}
    assert folded.error <= EXACT
    (conv,) = [n for n in folded.module.graph.nodes if "conv2d" in str(n.target)]
    weight, (_, said, dilated) = conv.args[1].meta["val"], conv.args[3:6]
    assert (tuple(weight.shape[2:]), conv.args[6]) == (kernel, groups)
    assert (said, dilated) == (padding, dilation)


SUMS = {
    "from the left": lambda m, x: m.a(x) + m.b(x) + m.c(x) + x,
    "from the right": lambda m, x: m.a(x) + (m.b(x) + (m.c(x) + x)),
    "in pairs": lambda m, x: (x + m.a(x)) + (m.b(x) + m.c(x)),
    "with differences": lambda m, x: x - (m.a(x) - m.b(x)) - m.c(x),
    "the skip twice": lambda m, x: (x + m.a(x)) + (m.b(x) + x) + m.c(x),
    "one of them twice": lambda m, x: _twice(m.a(x)) + m.b(x) + m.c(x) + x,
}


def _twice(y: Tensor) -> Tensor:
    return y + y


@pytest.mark.parametrize("form", SUMS)
def test_sums_of_any_length_and_nesting(form: str) -> None:
    model = Lambda(
        lambda m, x: SUMS[form](m, x.tanh()),
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 1, groups=2),
        c=nn.BatchNorm2d(4),
    )
    folded = fold(model, (4, 6, 6))
    assert folded.ops == {"tanh": 1, "conv2d": 1}
    assert folded.error <= EXACT


def test_a_sum_keeps_the_terms_that_do_not_merge() -> None:
    """Two inputs and an activation in one sum: one convolution for each input, two additions."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y, z = x.tanh(), x.sigmoid()
        return m.a(y) - (m.b(z) + x.relu()) + m.c(y) - m.d(z)

    convs = {name: nn.Conv2d(4, 4, 3, padding=1) for name in "abcd"}
    folded = fold(Lambda(forward, **convs), (4, 6, 6))
    assert folded.fired[PARALLEL] == 2
    assert folded.ops["conv2d"] == 2
    assert folded.ops["add"] + folded.ops["sub"] == 2
    assert folded.error <= EXACT


def test_rows_and_columns_go_into_the_square() -> None:
    """ACNet's form. Without the 3x3 they would stay a pair."""
    model = Lambda(
        lambda m, x: m.row(x) + m.column(x) + m.square(x),
        row=nn.Conv2d(3, 4, (1, 3), padding=(0, 1), bias=False),
        column=nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
        square=nn.Conv2d(3, 4, 3, padding=1),
    )
    folded = fold(model, (3, 6, 6))
    assert folded.ops == {"conv2d": 1}
    assert folded.error <= EXACT


def test_the_dense_branches_merge_and_the_depthwise_stays() -> None:
    """A depthwise 5x5 would make the dense 3x3 a dense 5x5."""
    model = Lambda(
        lambda m, x: m.deep(x) + m.one(x) + m.two(x),
        deep=nn.Conv2d(8, 8, 5, padding=2, groups=8),
        one=nn.Conv2d(8, 8, 3, padding=1),
        two=nn.Conv2d(8, 8, 1),
    )
    folded = fold(model, (8, 6, 6))
    assert folded.fired[PARALLEL] == 1
    assert folded.ops == {"conv2d": 2, "add": 1}
    assert folded.error <= EXACT


def test_a_norm_beside_the_value_itself() -> None:
    """x + BN(x) is a depthwise 1x1 convolution: as many multiply-adds as the norm had."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.tanh()
        return x + m.norm(x)

    folded = fold(Lambda(forward, norm=nn.BatchNorm2d(4)), (4, 6, 6))
    assert folded.ops == {"tanh": 1, "conv2d": 1}
    assert folded.error <= EXACT


def test_a_norm_and_a_scale_beside_a_linear_layer() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.tanh()
        return m.fc(x) + m.norm(x) + x * m.s

    model = Lambda(forward, fc=nn.Linear(6, 6), norm=nn.BatchNorm1d(6), s=numbers(6))
    folded = fold(model, (6,))
    assert folded.ops == {"tanh": 1, "linear": 1}
    assert folded.error <= EXACT


def test_a_map_added_to_itself() -> None:
    model = Lambda(lambda m, x: _twice(m.one(x)), one=nn.Linear(6, 4))
    folded = fold(model, (6,))
    assert folded.ops == {"linear": 1}
    assert folded.error <= EXACT


def test_residual_in_an_even_kernel_that_has_a_tap_there() -> None:
    """padding="same" puts the odd zero behind, so tap 0 of two looks at the pixel itself."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sigmoid()
        return x + m.conv(x)

    conv = nn.Conv2d(4, 4, 2, padding="same", groups=4)
    folded = fold(Lambda(forward, conv=conv), (4, 5, 5))
    assert folded.fired[RESIDUAL] == 1
    assert folded.ops == {"sigmoid": 1, "conv2d": 1}
    assert folded.error <= EXACT


def test_a_number_beside_a_map_in_float32() -> None:
    """A Python number has no type of its own; the weights keep theirs."""
    model = Lambda(lambda m, x: m.conv(x) + x * 0.3, conv=nn.Conv2d(4, 4, 3, padding=1))
    folded = fold_as_is(randomise(model.eval(), 0), torch.randn(3, 4, 6, 6))
    assert folded.ops == {"conv2d": 1}
    assert {value.dtype for value in folded.module.state_dict().values()} == {torch.float32}
    assert folded.error <= 1e-5

"""torch.export keeps in-place ops; a rule may move a value only where nobody writes into it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fold_check import (
    BN_NEXT,
    BN_PREVIOUS,
    EXACT,
    OUT_OF_PLACE,
    PARALLEL,
    RESIDUAL,
    SCALE_NEXT,
    SCALE_PREVIOUS,
    Lambda,
    fold,
    fold_as_is,
    numbers,
)
from helpers import randomise
from torch import Tensor, nn


def dw() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1, groups=4)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(inplace=True),
        nn.SiLU(inplace=True),
        nn.Hardswish(inplace=True),
        nn.LeakyReLU(0.1, inplace=True),
        nn.ReLU6(inplace=True),
    ],
    ids=lambda a: type(a).__name__,
)
def test_activations_in_place_do_not_hinder(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), activation, nn.Conv2d(5, 3, 1))
    folded = fold(model, (4, 6, 6))
    assert folded.fired[OUT_OF_PLACE] == 1
    assert folded.fired[BN_PREVIOUS] == 1
    assert not any(op.endswith("_") for op in folded.ops)
    assert folded.error <= EXACT


def test_the_result_read_twice() -> None:
    """y = conv(x); z = y.add_(1): every later y is z."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.add_(1)
        return m.norm(y) * z

    folded = fold(Lambda(forward, conv=dw(), norm=nn.BatchNorm2d(4)), (4, 6, 6))
    assert folded.times(BN_PREVIOUS) == 0
    assert folded.error <= EXACT


def test_the_convolution_written_into_before_its_norm() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        y.view(1, 4, 36).relu_()
        return m.norm(y)

    folded = fold(Lambda(forward, conv=dw(), norm=nn.BatchNorm2d(4)), (4, 6, 6))
    assert folded.times(BN_PREVIOUS) == 0
    assert folded.error <= EXACT


def test_part_of_the_convolution_overwritten_before_its_scale() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        y[:, 1] = 2.0
        return y * 3.0

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.times(SCALE_PREVIOUS) == 0
    assert folded.error <= EXACT


def test_the_residual_written_into_through_a_view() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        y = m.conv(x)
        x.view(1, 4, 36).sigmoid_()
        return x + y

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.times(RESIDUAL) == 0
    assert folded.error <= EXACT


def test_branches_that_read_before_and_after_a_write() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        y = m.one(x)
        x.view(1, 4, 36).sigmoid_()
        return y + m.two(x)

    folded = fold(Lambda(forward, one=dw(), two=dw()), (4, 6, 6))
    assert folded.times(PARALLEL) == 0
    assert folded.error <= EXACT


def test_pre_activation_in_place() -> None:
    """x + conv(relu_(norm(x))): the norm's output is new memory, x is not written into."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        return x + m.conv(m.norm(x).relu_())

    model = Lambda(forward, stem=dw(), norm=nn.BatchNorm2d(4), conv=dw())
    folded = fold(model, (4, 6, 6))
    assert folded.fired[OUT_OF_PLACE] == 1
    assert folded.error <= EXACT


def test_a_norm_read_after_its_input_was_written_into() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        y = m.norm(x)
        x.view(1, 4, 36).sigmoid_()
        return torch.cat([m.conv(y), x], 1)

    model = Lambda(forward, norm=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 4, 1))
    folded = fold(model, (4, 6, 6))
    assert folded.times(BN_NEXT) == 0
    assert folded.error <= EXACT


def test_a_scale_read_after_its_input_was_written_into() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.relu()
        y = x * 3.0
        x.view(1, 4, 36).sigmoid_()
        return torch.cat([m.conv(y), x], 1)

    folded = fold(Lambda(forward, conv=nn.Conv2d(4, 4, 1)), (4, 6, 6))
    assert folded.times(SCALE_NEXT) == 0
    assert folded.error <= EXACT


def test_a_write_inside_an_autocast_block() -> None:
    """torch.export makes a graph of its own of the block; the write is in there."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.tanh()
        y = m.conv(x)
        with torch.autocast("cpu", enabled=False):
            z = x.view(1, 4, 36).relu_().mean(2)
        return (x + y).flatten(2) * z[..., None].sigmoid()

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.times(RESIDUAL) == 0
    assert folded.error <= EXACT


def test_a_view_of_the_old_value_read_later_sees_the_write() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        view = y.view(1, 4, 36)
        y.relu_()
        return view.mean(2)

    folded = fold(Lambda(forward, conv=nn.Conv2d(4, 4, 3, padding=1)), (4, 6, 6))
    assert folded.times(OUT_OF_PLACE) == 0
    assert folded.error <= EXACT


def test_writing_into_the_input() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(2.0)
        return m.conv(x)

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.fired[SCALE_NEXT] == 1
    assert folded.error <= EXACT


def test_a_literal_written_into_is_new_in_every_run() -> None:
    """torch.tensor([...]) is a stored constant behind a copy; the copy must stay one."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        offset = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype).view(1, 4, 1, 1)
        offset += x.mean()
        return m.conv(x) * offset

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.error <= EXACT


def test_a_literal_written_into_by_an_op_that_has_to_stay() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        offset = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
        offset[1:] += x.mean()
        return m.conv(x) * offset.view(1, 4, 1, 1)

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.error <= EXACT


def test_something_computed_from_constants_and_then_written_into() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        offset = m.c * 2
        offset[:, 1:] += x.mean()
        return m.conv(x) * offset

    folded = fold(Lambda(forward, conv=dw(), c=numbers(1, 4, 1, 1)), (4, 6, 6))
    assert folded.error <= EXACT


def test_a_weight_that_is_written_into_is_no_constant() -> None:
    """A buffer set from the input: its old value may not be folded."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        view = m.state.view(4)
        m.state.copy_(x.mean((2, 3), keepdim=True))
        return m.conv(x) * view.view(1, 4, 1, 1)

    folded = fold(Lambda(forward, conv=dw(), state=numbers(1, 4, 1, 1)), (4, 6, 6))
    assert folded.times(SCALE_PREVIOUS) == 0
    assert folded.error <= EXACT


def test_a_weight_that_changes_from_run_to_run() -> None:
    """It decays behind its use: neither its value nor its decay may be folded away."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.linear(x, m.weight)
        m.weight.mul_(0.5)
        return m.norm(y)

    model = Lambda(forward, norm=nn.BatchNorm1d(4), weight=numbers(4, 6).double())
    model = randomise(model.eval(), 0).double()
    inputs = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    folded = fold_as_is(model, inputs, runs=1)
    assert folded.ops["mul_"] == 1
    assert folded.times(BN_PREVIOUS) == 0
    assert folded.error <= EXACT


def test_in_place_arithmetic_does_not_promote() -> None:
    """float32.mul_(float64) stays float32, its functional form would not."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x).float()
        y.mul_(x.mean((2, 3), keepdim=True))
        return y.double()

    folded = fold(Lambda(forward, conv=dw()), (4, 6, 6))
    assert folded.ops["mul_"] == 1
    assert folded.error <= EXACT

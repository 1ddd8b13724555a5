"""Where a rule would not be exact it does not fire, the op stays, the function is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fold_check import (
    BN_NEXT,
    BN_PREVIOUS,
    EXACT,
    NO_OPS,
    NORM_AFFINE,
    RESIDUAL,
    SCALE_NEXT,
    SCALE_PREVIOUS,
    SCALE_PRODUCT,
    Lambda,
    assert_stays,
    fold,
    fold_as_is,
    numbers,
)
from helpers import randomise
from torch import Tensor, nn

from converters.reparam import apply_rules


def test_convolution_read_twice_before_its_norm() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) + y.relu()

    folded = fold(Lambda(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)), (3, 6, 6))
    assert_stays(folded, "batch_norm", 1, BN_PREVIOUS, BN_NEXT)


def test_convolution_that_is_an_output_too() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.cat([m.norm(y), y])

    folded = fold(Lambda(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)), (3, 6, 6))
    assert_stays(folded, "batch_norm", 1, BN_PREVIOUS, BN_NEXT)


@pytest.mark.parametrize("padding", [1, "same", (0, 1)])
def test_norm_before_a_padded_convolution(padding: int | str | tuple[int, int]) -> None:
    """The padding zeros come after the norm: its shift would have to be padded instead."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding))
    assert_stays(fold(model, (3, 6, 6)), "batch_norm", 1, BN_NEXT)


def test_norm_before_a_padded_1x1_convolution() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding=1))
    assert_stays(fold(model, (3, 6, 6)), "batch_norm", 1, BN_NEXT)


def test_norm_of_which_one_reader_is_padded() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.one(y) + m.two(y).sigmoid()

    model = Lambda(
        forward,
        norm=nn.BatchNorm2d(3),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 3, padding=1),
    )
    assert_stays(fold(model, (3, 6, 6)), "batch_norm", 1, BN_NEXT)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_norm_before_a_convolution_that_pads_otherwise(mode: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode))
    assert_stays(fold(model, (3, 6, 6)), "batch_norm", 1, BN_NEXT)


def test_norm_that_trains() -> None:
    """Statistics of the batch: nothing to fold. (Inputs are run one by one, on copies.)"""
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0).double()
    folded = fold_as_is(model.train(), torch.randn(3, 3, 6, 6, dtype=torch.float64))
    assert_stays(folded, "batch_norm", 1, BN_PREVIOUS)


def test_norm_without_statistics() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).double().eval()
    folded = fold_as_is(model, torch.randn(3, 3, 6, 6, dtype=torch.float64))
    assert_stays(folded, "batch_norm", 1, BN_PREVIOUS)


@torch.no_grad()
def test_dropout_that_trains() -> None:
    """Its outputs are random, so only the graph is looked at."""
    model = Lambda(lambda m, x: F.dropout(m.fc(x), 0.5, training=True), fc=nn.Linear(6, 4)).double()
    module = torch.export.export(model, (torch.randn(1, 6, dtype=torch.float64),)).module()
    assert apply_rules(module).get(NO_OPS, 0) == 1  # the guards
    assert [n for n in module.graph.nodes if n.target is torch.ops.aten.dropout.default]


def test_norm_over_tokens_after_a_linear_map() -> None:
    """BatchNorm1d of (B, N, C) normalises the tokens, the linear map writes the channels."""
    for tokens, channels in ((5, 4), (4, 4)):
        model = nn.Sequential(nn.Linear(6, channels), nn.BatchNorm1d(tokens))
        assert_stays(fold(model, (tokens, 6)), "batch_norm", 1, BN_PREVIOUS, BN_NEXT)


def test_norm_of_tokens_before_a_linear_map() -> None:
    """The other order: the linear map contracts dimension 2, the norm works on dimension 1."""
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    assert_stays(fold(model, (6, 6)), "batch_norm", 1, BN_NEXT)


def test_norm_behind_a_mean_over_its_channels() -> None:
    model = Lambda(lambda m, x: m.fc(m.norm(x).mean(1)), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 3))
    assert_stays(fold(model, (4, 4, 4)), "batch_norm", 1, BN_NEXT)


def test_norm_behind_a_mean_that_leaves_another_dimension_in_its_place() -> None:
    """After a mean over channels and rows, dimension 1 is the width."""
    model = Lambda(
        lambda m, x: m.fc(m.norm(x).mean((1, 2))), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 3)
    )
    assert_stays(fold(model, (4, 4, 4)), "batch_norm", 1, BN_NEXT)


def test_norm_behind_a_transpose() -> None:
    """The convolution contracts what the norm left alone; the sizes are equal."""
    model = Lambda(
        lambda m, x: m.conv(m.norm(x).transpose(1, 2)),
        norm=nn.BatchNorm1d(4),
        conv=nn.Conv1d(4, 3, 1),
    )
    assert_stays(fold(model, (4, 4)), "batch_norm", 1, BN_NEXT)


def test_norm_behind_a_flatten_that_mixes_channels_and_places() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 3))
    assert_stays(fold(model, (4, 3, 3)), "batch_norm", 1, BN_NEXT)


def test_scale_whose_channels_are_read_elsewhere() -> None:
    """q is scaled for one reader, and q's rows reach another reader unscaled."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k = m.qk(x).split([3, 3], -1)
        return (q * 0.3).softmax(-1) + k + q.relu()

    folded = fold(Lambda(forward, qk=nn.Linear(6, 6)), (5, 6))
    assert_stays(folded, "mul", 1, SCALE_PREVIOUS, SCALE_NEXT)


def test_scale_whose_channels_another_slice_shows() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        return (y[..., :4] * 0.3).softmax(-1) + y[..., 2:].relu()

    folded = fold(Lambda(forward, fc=nn.Linear(6, 6)), (5, 6))
    assert_stays(folded, "mul", 1, SCALE_PREVIOUS)


def test_scale_that_would_need_two_values_for_one_channel() -> None:
    """Behind a transpose the factor counts tokens: each channel would need every value."""
    model = Lambda(
        lambda m, x: (m.fc(x).transpose(1, 2) * m.s).softmax(-1),
        fc=nn.Linear(6, 5),
        s=numbers(5),
    )
    assert_stays(fold(model, (5, 6)), "mul", 1, SCALE_PREVIOUS)


@pytest.mark.parametrize("shape", [(1, 1, 6, 1), (1, 4, 6, 6), (6, 1), (1, 1, 1, 6)])
def test_scale_that_varies_over_places(shape: tuple[int, ...]) -> None:
    model = Lambda(
        lambda m, x: m.two((m.one(x) * m.s).relu()),
        one=nn.Conv2d(3, 4, 3, padding=1),
        two=nn.Conv2d(4, 3, 1),
        s=numbers(*shape),
    )
    assert_stays(fold(model, (3, 6, 6)), "mul", 1, SCALE_PREVIOUS, SCALE_NEXT)


def test_scale_that_varies_over_places_before_a_map() -> None:
    model = Lambda(
        lambda m, x: m.conv(x.relu() * m.s), conv=nn.Conv2d(3, 4, 1), s=numbers(1, 1, 6, 1)
    )
    assert_stays(fold(model, (3, 6, 6)), "mul", 1, SCALE_NEXT)


def test_scale_that_broadcasts_its_value() -> None:
    model = Lambda(
        lambda m, x: m.conv(x.mean((2, 3), keepdim=True).relu() * m.s),
        conv=nn.Conv2d(3, 4, 1),
        s=numbers(1, 3, 5, 5),
    )
    assert_stays(fold(model, (3, 6, 6)), "mul", 1, SCALE_NEXT)


def test_scale_read_by_a_map_and_by_an_add() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.relu() * 0.3
        return m.fc(y) + y

    folded = fold(Lambda(forward, fc=nn.Linear(6, 6, bias=False)), (5, 6))
    # The residual goes into the map first; without it the scale has a reader of its own kind only.
    assert folded.fired[RESIDUAL] == 1
    assert folded.fired[SCALE_NEXT] == 1
    assert folded.error <= EXACT

    def with_activation(m: nn.Module, x: Tensor) -> Tensor:
        y = x.relu() * 0.3
        return m.fc(y) + y.tanh()

    folded = fold(Lambda(with_activation, fc=nn.Linear(6, 6)), (5, 6))
    assert_stays(folded, "mul", 1, SCALE_NEXT)


def test_product_of_a_map_with_itself() -> None:
    """c (a a) is not (c a)(c a)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a = m.fc(x)
        return (a @ a) * 0.3

    folded = fold(Lambda(forward, fc=nn.Linear(5, 5)), (5, 5))
    assert_stays(folded, "mul", 1, SCALE_PRODUCT)


def test_product_of_a_map_with_its_own_transpose() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a = m.fc(x)
        return (a @ a.transpose(1, 2)) * 0.3

    folded = fold(Lambda(forward, fc=nn.Linear(6, 4)), (5, 6))
    assert_stays(folded, "mul", 1, SCALE_PRODUCT)


def test_product_read_twice() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        scores = m.q(x) @ m.k(x).transpose(1, 2)
        return (scores * 0.3).softmax(-1) + scores

    folded = fold(Lambda(forward, q=nn.Linear(6, 4), k=nn.Linear(6, 4)), (5, 6))
    assert_stays(folded, "mul", 1, SCALE_PRODUCT)


def test_product_scaled_by_a_tensor() -> None:
    """A factor per head or per row does not commute with the product in every layout."""
    model = Lambda(
        lambda m, x: ((m.q(x) @ m.k(x).transpose(1, 2)) * m.s).softmax(-1),
        q=nn.Linear(6, 4),
        k=nn.Linear(6, 4),
        s=numbers(5),
    )
    assert_stays(fold(model, (5, 6)), "mul", 1, SCALE_PRODUCT)


def test_linear_map_by_a_vector() -> None:
    """F.linear takes a vector and then has no output channels; its sizes may look as if it had."""
    model = Lambda(lambda m, x: F.linear(x, m.w) * m.s, w=numbers(6), s=numbers(6, seed=1))
    folded = fold(model, (6, 6))
    assert_stays(folded, "mul", 1, SCALE_PREVIOUS, SCALE_NEXT)


def test_weights_computed_from_the_input() -> None:
    model = Lambda(lambda m, x: m.norm(F.linear(x, x.transpose(0, 1) @ x)), norm=nn.BatchNorm1d(6))
    assert_stays(fold(model, (6,)), "batch_norm", 1, BN_PREVIOUS)


def test_layer_norm_over_two_dimensions() -> None:
    model = nn.Sequential(nn.LayerNorm((5, 6)), nn.Linear(6, 4))
    folded = fold(model, (5, 6))
    assert folded.times(NORM_AFFINE) == 0
    assert folded.error <= EXACT


def test_layer_norm_read_by_a_map_and_by_an_activation() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.fc(y) + y.tanh()

    folded = fold(Lambda(forward, norm=nn.LayerNorm(6), fc=nn.Linear(6, 6)), (5, 6))
    assert folded.times(NORM_AFFINE) == 0
    assert folded.error <= EXACT


def test_layer_norm_read_by_an_add_beside_a_map_that_cannot_take_it() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.down(m.fc(y).relu()) + y

    model = Lambda(forward, norm=nn.LayerNorm(6), fc=nn.Linear(6, 8), down=nn.Linear(8, 6))
    folded = fold(model, (5, 6))
    assert folded.times(NORM_AFFINE) == 0
    assert folded.error <= EXACT


def test_group_norm_before_a_padded_convolution() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3, padding=1))
    folded = fold(model, (4, 6, 6))
    assert folded.times(NORM_AFFINE) == 0
    assert folded.error <= EXACT


def test_layer_norm_over_the_width_before_a_convolution() -> None:
    """Equal sizes: the norm's channels are the width, the convolution's are dimension 1."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Conv2d(4, 3, 1))
    folded = fold(model, (4, 4, 4))
    assert folded.times(NORM_AFFINE) == 0
    assert folded.error <= EXACT


def test_norm_behind_a_reshape_that_mixes_channels() -> None:
    """(B, N, C) seen as (B * C, N): each of the norm's channels is a token."""
    model = Lambda(
        lambda m, x: m.norm(m.fc(x).transpose(1, 2).flatten(0, 1)),
        fc=nn.Linear(6, 4),
        norm=nn.BatchNorm1d(5),
    )
    folded = fold_as_is(
        randomise(model.eval(), 0).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    )
    assert_stays(folded, "batch_norm", 1, BN_PREVIOUS)


def test_reshapes_that_do_not_lead_back() -> None:
    """A transpose between them: the shape is the old one, the order is not."""
    model = Lambda(
        lambda m, x: x.relu().flatten(2).transpose(1, 2).reshape(1, 4, 2, 2).sigmoid(),
        fc=nn.Linear(2, 2),
    )
    folded = fold(model, (4, 2, 2))
    assert folded.ops["reshape"] == 1
    assert folded.error <= EXACT

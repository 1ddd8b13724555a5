"""What is computed from constants alone, and ops that return their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fold_check import CONSTANTS, EQUAL, EXACT, NO_OPS, Lambda, fold, fold_as_is, numbers
from torch import Tensor, nn


def test_attention_bias_gathered_by_a_fixed_index() -> None:
    index = torch.randint(0, 9, (5, 5), generator=torch.Generator().manual_seed(0))
    model = Lambda(
        lambda m, x: (x @ x.transpose(1, 2) + m.table[:, m.index][0]).softmax(-1),
        table=nn.Parameter(torch.empty(2, 9)),
        index=index,
    )
    folded = fold(model, (5, 6))
    assert folded.fired[CONSTANTS] >= 1
    assert folded.ops["index"] == 0
    assert folded.error <= EXACT


def test_view_of_a_layer_scale() -> None:
    model = Lambda(
        lambda m, x: x.sigmoid() * m.gamma.view(1, -1, 1, 1), gamma=nn.Parameter(torch.empty(4))
    )
    folded = fold(model, (4, 5, 5))
    assert folded.fired[CONSTANTS] == 1
    assert folded.ops["view"] == 0
    assert folded.error <= EXACT


def test_relative_positions_computed_at_every_call() -> None:
    """Index tables and sines that the model makes from nothing in forward()."""

    def attend(m: nn.Module, x: Tensor) -> Tensor:
        place = torch.arange(5)
        index = (place[:, None] - place[None, :]).abs()
        waves = (torch.arange(6) * torch.linspace(0.1, 1, 6)).sin().to(x.dtype)
        return ((x + waves) @ x.transpose(1, 2) + m.table[index]).softmax(-1)

    folded = fold(Lambda(attend, table=numbers(5)), (5, 6))
    assert folded.fired[CONSTANTS] >= 1
    for op in ("arange", "linspace", "sub", "abs", "index", "sin"):
        assert folded.ops[op] == 0, op
    assert folded.error <= EXACT


def test_random_ops_are_never_evaluated() -> None:
    """Their value would be frozen: all of them stay in the graph."""

    def draw(m: nn.Module, x: Tensor) -> Tensor:
        noise = torch.rand_like(m.c) + torch.randn(4) + torch.bernoulli(m.c)
        noise = noise + F.dropout(m.c, 0.5, training=True) + torch.normal(m.c, 1.0)
        return x + 0 * noise

    folded = fold_as_is(Lambda(draw, c=numbers(4, low=0.2, high=0.8)), torch.randn(3, 5, 4))
    for op in ("rand_like", "randn", "bernoulli", "dropout", "normal"):
        assert folded.ops[op] == 1, op


def test_memory_that_is_filled_before_it_is_read() -> None:
    model = Lambda(
        lambda m, x: x + torch.empty(4).fill_(0.5) + torch.empty_like(m.c).zero_(), c=numbers(4)
    )
    folded = fold_as_is(model, torch.randn(3, 5, 4))
    assert folded.error <= EXACT


def test_a_constant_that_would_grow_stays_small() -> None:
    model = Lambda(
        lambda m, x: (m.c.expand(1 << 11, 1 << 12) * x.mean()).mean((0, 1))[None, None] + x,
        c=numbers(1),
    )
    folded = fold_as_is(model, torch.randn(3, 4))
    assert folded.ops["expand"] == 1
    assert folded.stored < 1000


def test_a_gather_is_folded_however_much_it_grows() -> None:
    """Position biases (heads, 49) by offset to (heads, 49, 49): gathers break delegates."""
    side = torch.arange(7)
    offset = (side[:, None] - side[None, :]).abs()
    index = (offset[:, None, :, None] * 7 + offset[None, :, None, :]).reshape(49, 49)
    model = Lambda(
        lambda m, x: (x @ x.transpose(2, 3) + m.table[:, m.index]).softmax(-1),
        table=nn.Parameter(torch.empty(8, 49)),
        index=index,
    )
    folded = fold(model, (8, 49, 4))
    assert folded.fired[CONSTANTS] == 1
    assert folded.ops["index"] == 0
    assert folded.stored == 8 * 49 * 49
    assert folded.error <= EXACT


def scores(m: nn.Module, x: Tensor) -> Tensor:
    """ConViT's: a table of positions, the same in each layer, through a small map of each."""
    for table, fc in ((m.one, m.first), (m.two, m.second)):
        weights = fc(table).permute(0, 3, 1, 2).softmax(-1)
        x = x + weights @ x.tanh()
    return x


def test_cheap_arithmetic_that_grows_stays() -> None:
    table = numbers(1, 40, 40, 3)
    model = Lambda(
        scores, one=table, two=table.clone(), first=nn.Linear(3, 4), second=nn.Linear(3, 4)
    )
    folded = fold(model, (4, 40, 6))
    assert folded.ops["linear"] == 2
    assert folded.fired[EQUAL] == 1
    assert folded.stored == 40 * 40 * 3 + 2 * (3 * 4 + 4)
    assert folded.error <= EXACT


def test_cheap_arithmetic_that_leads_to_a_gather_is_folded_with_it() -> None:
    index = torch.randint(0, 9, (60, 60), generator=torch.Generator().manual_seed(0))
    model = Lambda(
        lambda m, x: x + m.fc(m.table.expand(9, 60, 3))[m.index, 0].mean(-1),
        table=numbers(60, 3),
        fc=nn.Linear(3, 8),
        index=index,
    )
    folded = fold(model, (60, 60))
    assert folded.ops["linear"] == folded.ops["expand"] == folded.ops["index"] == 0
    assert folded.error <= EXACT


def test_cheap_arithmetic_that_does_not_grow_is_folded() -> None:
    """Weight normalisation: as large as the weight that it replaces."""
    model = Lambda(
        lambda m, x: F.conv2d(x, (m.v - m.v.mean((1, 2, 3), True)) * m.g, padding=1),
        v=numbers(24, 24, 3, 3),
        g=numbers(24, 1, 1, 1),
    )
    folded = fold(model, (24, 5, 5))
    assert folded.ops == {"conv2d": 1}
    assert folded.stored == 24 * 24 * 9
    assert folded.error <= EXACT


def test_equal_tables_that_are_written_into_stay_apart() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.one + x
        m.two.mul_(0.5)
        return y + m.two

    table = numbers(60, 60).double()
    folded = fold_as_is(
        Lambda(forward, one=table, two=table.clone()),
        torch.randn(3, 60, 60, dtype=torch.float64),
        runs=1,
    )
    assert folded.times(EQUAL) == 0
    assert folded.error <= EXACT


def test_adding_nothing_and_multiplying_by_one() -> None:
    folded = fold(Lambda(lambda m, x: (0 + x.tanh() * 1) / 1.0 - 0, fc=nn.Linear(2, 2)), (5, 6))
    assert folded.ops == {"tanh": 1}
    assert folded.error <= EXACT


def test_adding_nothing_in_a_wider_type_stays() -> None:
    """An integer plus 0.0 is a float."""
    model = Lambda(lambda m, x: x.round().to(torch.int32) + 0.0, fc=nn.Linear(2, 2))
    folded = fold_as_is(model.double(), 9 * torch.randn(3, 5, 6, dtype=torch.float64))
    assert folded.ops["add"] == 1
    assert folded.error == 0


def test_reshapes_that_lead_back_go() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        return y.flatten(0, 1).unsqueeze(0).view(-1, 2).reshape_as(y).sigmoid()

    folded = fold(Lambda(forward, fc=nn.Linear(6, 4)), (5, 6))
    assert folded.ops == {"linear": 1, "sigmoid": 1}
    assert folded.error <= EXACT


def test_no_ops_go() -> None:
    def idle(m: nn.Module, x: Tensor) -> Tensor:
        x = m.drop(x).view(1, 5, 6).reshape(1, 5, 6).expand(1, 5, 6).detach()
        return m.maps(m.channels(m.alpha(m.fc(x)))[..., None, None])[..., 0, 0]

    model = Lambda(
        idle,
        fc=nn.Linear(6, 4),
        drop=nn.Dropout(0.5),
        alpha=nn.AlphaDropout(0.5),
        channels=nn.Dropout1d(0.5),
        maps=nn.FeatureAlphaDropout(0.5),
    )
    folded = fold(model, (5, 6))
    assert folded.fired[NO_OPS] >= 7
    left = {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
    assert not (left | {"view", "reshape", "expand", "detach"}) & set(folded.ops)
    assert folded.error <= EXACT


def test_a_reshape_that_changes_the_shape_stays() -> None:
    folded = fold(Lambda(lambda m, x: m.fc(x).reshape(1, 4, 5), fc=nn.Linear(6, 4)), (5, 6))
    assert folded.ops["reshape"] == 1
    assert folded.error <= EXACT

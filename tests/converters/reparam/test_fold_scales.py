"""Constant scales into a linear map before or behind them, and through the attention product."""

from __future__ import annotations

import pytest
import torch
from fold_check import (
    EXACT,
    SCALE_NEXT,
    SCALE_PREVIOUS,
    SCALE_PRODUCT,
    Lambda,
    fold,
    fold_as_is,
    numbers,
)
from helpers import randomise
from torch import Tensor, nn

BEFORE = {
    "layer scale on a map": (
        Lambda(
            lambda m, x: x + m.conv(x) * m.gamma.view(1, -1, 1, 1),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            gamma=nn.Parameter(torch.empty(4)),
        ),
        (4, 5, 5),
    ),
    "layer scale of shape (C, 1, 1), first": (
        Lambda(
            lambda m, x: x.relu() + m.gamma * m.conv(x),
            conv=nn.Conv2d(4, 4, 1, bias=False),
            gamma=numbers(4, 1, 1),
        ),
        (4, 5, 5),
    ),
    "layer scale on tokens": (
        Lambda(
            lambda m, x: x.relu() + m.fc(x) * m.gamma,
            fc=nn.Linear(6, 6),
            gamma=nn.Parameter(torch.empty(6)),
        ),
        (5, 6),
    ),
    "number": (Lambda(lambda m, x: 0.3 * m.fc(x), fc=nn.Linear(6, 4)), (5, 6)),
    "division by a number": (Lambda(lambda m, x: m.fc(x) / 1.7, fc=nn.Linear(6, 4)), (5, 6)),
    "division by a tensor": (
        Lambda(lambda m, x: m.fc(x) / m.std, fc=nn.Linear(6, 4), std=numbers(4)),
        (5, 6),
    ),
    "one number as a tensor": (
        Lambda(lambda m, x: m.conv(x) * m.s, conv=nn.Conv2d(3, 4, 3), s=numbers(1, 1, 1, 1)),
        (3, 5, 5),
    ),
    "behind a view": (
        Lambda(lambda m, x: m.conv(x).view(1, -1) * 0.5, conv=nn.Conv2d(3, 4, 3)),
        (3, 5, 5),
    ),
    "behind a permute": (
        Lambda(
            lambda m, x: m.conv(x).flatten(2).transpose(1, 2) * m.gamma,
            conv=nn.Conv2d(3, 4, 3),
            gamma=numbers(4),
        ),
        (3, 5, 5),
    ),
    "behind a space to depth": (
        Lambda(
            lambda m, x: m.conv(x).reshape(1, 4, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4) * 0.7,
            conv=nn.Conv2d(3, 4, 1),
        ),
        (3, 4, 6),
    ),
    "per head, on q behind an interleaved layout": (
        Lambda(
            lambda m, x: _with_scaled_q(m.qkv(x).reshape(1, 5, 2, 9).transpose(1, 2)),
            qkv=nn.Linear(6, 18),
        ),
        (5, 6),
    ),
    "q behind an unbind": (
        Lambda(
            lambda m, x: _dots(*m.qkv(x).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)),
            qkv=nn.Linear(6, 24),
        ),
        (5, 6),
    ),
    "q behind a slice": (
        Lambda(
            lambda m, x: (lambda y: torch.cat([y[..., 4:], y[..., :4] * 0.2], 1))(m.fc(x)),  # noqa: PLC3002
            fc=nn.Linear(6, 8),
        ),
        (5, 6),
    ),
}


def _with_scaled_q(qkv: Tensor) -> Tensor:
    q, k, v = qkv.split([2, 2, 5], dim=-1)
    return (((q * 0.4) @ k.transpose(-2, -1)).softmax(-1) @ v).flatten(2)


def _dots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize("form", BEFORE)
def test_into_the_map_before(form: str) -> None:
    model, shape = BEFORE[form]
    folded = fold(model, shape)
    assert folded.fired[SCALE_PREVIOUS] == 1
    assert folded.ops["mul"] + folded.ops["div"] == 0
    assert folded.error <= EXACT


def test_different_heads_take_different_scales() -> None:
    """A factor per head reaches the rows of that head alone."""
    model = Lambda(
        lambda m, x: (m.fc(x).reshape(1, 5, 3, 4).transpose(1, 2) * m.per_head).softmax(-1),
        fc=nn.Linear(6, 12),
        per_head=numbers(3, 1, 1),
    )
    folded = fold(model, (5, 6))
    assert folded.fired[SCALE_PREVIOUS] == 1
    assert folded.ops["mul"] == 0
    assert folded.error <= EXACT


AFTER = {
    "before a 1x1 convolution": (
        Lambda(lambda m, x: m.conv(x.relu() * m.s), conv=nn.Conv2d(4, 3, 1), s=numbers(1, 4, 1, 1)),
        (4, 5, 5),
    ),
    "before a padded convolution": (
        Lambda(
            lambda m, x: m.conv(x.relu() * m.s),
            conv=nn.Conv2d(4, 3, 3, padding=1),
            s=numbers(1, 4, 1, 1),
        ),
        (4, 5, 5),
    ),
    "before a grouped, padded convolution": (
        Lambda(
            lambda m, x: m.conv(x.relu() / m.s),
            conv=nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False),
            s=numbers(4, 1, 1),
        ),
        (4, 5, 5),
    ),
    "before a linear map": (
        Lambda(lambda m, x: m.fc(x.relu() * m.s), fc=nn.Linear(6, 4), s=numbers(6)),
        (5, 6),
    ),
    "a number before two maps": (
        Lambda(
            lambda m, x: m.one(x.relu() * 0.3) + m.two((x.relu() * 0.3).mean((2, 3), True)),
            one=nn.Conv2d(4, 3, 1),
            two=nn.Conv2d(4, 3, 1, bias=False),
        ),
        (4, 5, 5),
    ),
    "before a mean and a head": (
        Lambda(
            lambda m, x: m.fc((x.relu() * m.s).mean((2, 3))), fc=nn.Linear(4, 3), s=numbers(4, 1, 1)
        ),
        (4, 5, 5),
    ),
    "the input's std": (
        Lambda(
            lambda m, x: m.conv((x - m.mean) / m.std),
            conv=nn.Conv2d(3, 4, 3, stride=2, padding=1),
            mean=numbers(1, 3, 1, 1),
            std=numbers(1, 3, 1, 1, seed=6),
        ),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("form", AFTER)
def test_into_the_maps_after(form: str) -> None:
    model, shape = AFTER[form]
    folded = fold(model, shape)
    assert folded.fired[SCALE_NEXT] >= 1
    assert folded.ops["mul"] + folded.ops["div"] == 0
    assert folded.error <= EXACT


class Attention(nn.Module):
    """q k^T * scale + bias over `heads`, the products as matmul or as bmm."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.product = product
        self.qkv = nn.Linear(6, 2 * 9)
        self.bias = nn.Parameter(torch.empty(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(1, 5, 2, 9).transpose(1, 2)
        if self.product == "bmm":
            q, k, v = qkv.flatten(0, 1).split([2, 2, 5], dim=-1)
            scores = torch.bmm(q, k.transpose(1, 2)) * 2**-0.5
            return torch.bmm((scores + self.bias).softmax(-1), v)
        q, k, v = qkv.split([2, 2, 5], dim=-1)
        scores = (q @ k.transpose(-2, -1)) / 2**0.5
        return (scores + self.bias).softmax(-1) @ v


@pytest.mark.parametrize("product", ["matmul", "bmm"])
def test_attention_scale_through_the_product(product: str) -> None:
    folded = fold(Attention(product), (5, 6))
    assert folded.fired[SCALE_PRODUCT] == 1
    assert folded.ops["mul"] + folded.ops["div"] == 0
    assert folded.error <= EXACT


def test_attention_scale_into_the_key_where_the_query_is_no_linear_map() -> None:
    model = Lambda(
        lambda m, x: ((x.relu() @ m.k(x).transpose(1, 2)) * 0.3).softmax(-1), k=nn.Linear(6, 6)
    )
    folded = fold(model, (5, 6))
    assert folded.fired[SCALE_PRODUCT] == 1
    assert folded.ops["mul"] == 0
    assert folded.error <= EXACT


def test_two_scales_on_one_map() -> None:
    """Attention scale and a temperature on the same q, one before and one behind the product."""
    model = Lambda(
        lambda m, x: (((m.q(x) * m.t) @ m.k(x).transpose(1, 2)) * 0.3).softmax(-1),
        q=nn.Linear(6, 4),
        k=nn.Linear(6, 4),
        t=numbers(4),
    )
    folded = fold(model, (5, 6))
    assert folded.fired[SCALE_PREVIOUS] == 1
    assert folded.fired[SCALE_PRODUCT] == 1
    assert folded.ops["mul"] == 0
    assert folded.error <= EXACT


def test_whole_numbers_scaled_to_fractions_stay() -> None:
    """uint8 / 255 promotes: without the division the convolution would be given integers."""
    model = Lambda(lambda m, x: m.conv(x / 255), conv=nn.Conv2d(3, 4, 3))
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 6, 6), dtype=torch.uint8, generator=draw)
    folded = fold_as_is(randomise(model.eval(), 0), pictures)
    assert folded.fired.keys() <= {"remove no-ops"}
    assert folded.ops["div"] == 1
    assert folded.error == 0

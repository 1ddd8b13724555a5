"""Convolutions of any geometry, side by side and in a row: merged or not, the function stays."""

from __future__ import annotations

from collections import Counter

import torch
from fold_check import CHAIN, EXACT, PARALLEL, Lambda, fold
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

CHANNELS = 4
HEIGHT, WIDTH = 9, 8

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
CONVS = st.builds(
    lambda kernel, stride, padding, dilation, groups, bias: nn.Conv2d(
        CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups, bias
    ),
    kernel=PAIR,
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
CHECKED = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def output_size(model: nn.Module) -> tuple[int, ...] | None:
    try:
        with torch.device("meta"):
            return tuple(model(torch.empty(1, CHANNELS, HEIGHT, WIDTH)).shape)
    except RuntimeError:  # a kernel larger than the picture
        return None


def test_side_by_side() -> None:
    seen: Counter[bool] = Counter()

    @CHECKED
    @given(CONVS, st.tuples(*[st.integers(0, 2)] * 2), st.sampled_from([1, 2, 4]), st.booleans())
    def check(one: nn.Conv2d, smaller: tuple[int, int], groups: int, bias: bool) -> None:
        """The second has a smaller kernel and the padding that keeps the size, if there is one."""
        kernel = tuple(max(k - s, 1) for k, s in zip(one.kernel_size, smaller, strict=True))
        less = [d * (k - n) for d, k, n in zip(one.dilation, one.kernel_size, kernel, strict=True)]
        padding = tuple(p - n // 2 for p, n in zip(one.padding, less, strict=True))
        assume(min(padding) >= 0)
        two = nn.Conv2d(CHANNELS, CHANNELS, kernel, one.stride, padding, one.dilation, groups, bias)
        assume(output_size(one) == output_size(two) is not None)
        model = Lambda(lambda m, x: m.one(x) - m.two(x), one=one, two=two)
        folded = fold(model, (CHANNELS, HEIGHT, WIDTH))
        assert folded.error <= EXACT
        seen[folded.times(PARALLEL) == 1] += 1

    check()
    assert seen[True] >= 5, seen
    assert seen[False] >= 3, seen


def test_in_a_row() -> None:
    seen: Counter[bool] = Counter()

    @CHECKED
    @given(CONVS, CONVS)
    def check(one: nn.Conv2d, two: nn.Conv2d) -> None:
        model = nn.Sequential(one, two)
        assume(output_size(model) is not None)
        folded = fold(model, (CHANNELS, HEIGHT, WIDTH))
        assert folded.error <= EXACT
        seen[folded.times(CHAIN) == 1] += 1

    check()
    assert seen[True] >= 3, seen
    assert seen[False] >= 5, seen

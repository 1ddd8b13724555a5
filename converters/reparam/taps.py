"""Linear ops over channels and neighbours as one thing: a set of taps, which add up and compose.

A tap at offset d adds W_d x[stride * o + d] to y[o], with zeros read outside the input. A
convolution is a set of taps at even steps, a linear layer one tap without dimensions, a pooling of
kernel 1 or a skip one identity tap. Two ops over one input add tap by tap where their strides are
equal; one op after another has a tap at every sum of two offsets.

Shapes: weight (out, in/groups, *kernel) as in torch. Tuples hold one number per
spatial dimension: none for a linear layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.graph import FoldGraph, arg, aten, module_path, shape_of
from converters.reparam.linear_map import CONVS, CONVS_NAMED_PADDING, LinearMap

POOLS: dict[Any, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
}


@dataclass(frozen=True)
class Taps:
    """y[o] = bias + sum over k of W_k x[stride * o + start + step * k], per dimension.

    `cost` is multiply-adds per output position: that of the ops it stands for, where a skip costs
    nothing and a scale or a norm one per channel.
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    stride: tuple[int, ...]
    start: tuple[int, ...]
    step: tuple[int, ...]
    cost: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(int(k) for k in self.weight.shape[2:])

    def offsets(self, dim: int) -> range:
        """Where the taps lie along a dimension, relative to stride * o."""
        start, step = self.start[dim], self.step[dim]
        return range(start, start + step * self.kernel[dim], step)


def taps_of(linear: LinearMap) -> Taps:
    """The taps of a convolution or a linear layer."""
    kernel = tuple(int(k) for k in linear.weight.shape[2:])
    if linear.padding == "valid":
        front = tuple(0 for _ in kernel)
    elif isinstance(linear.padding, str):  # "same" puts the odd zero behind
        front = tuple(d * (k - 1) // 2 for d, k in zip(linear.dilation, kernel, strict=True))
    else:
        front = linear.padding
    start = tuple(-p for p in front)
    cost = linear.weight.numel()
    return Taps(
        linear.weight, linear.bias, linear.groups, linear.stride, start, linear.dilation, cost
    )


def diagonal_taps(
    scale: Tensor, shift: Tensor | None, stride: tuple[int, ...], cost: int = 0
) -> Taps:
    """scale * x + shift, both (C,), at every `stride`-th position."""
    rank = len(stride)
    weight = scale.reshape(-1, 1, *[1] * rank) if rank else torch.diag(scale)
    groups = len(scale) if rank else 1
    return Taps(weight, shift, groups, stride, (0,) * rank, (1,) * rank, cost)


def pool_stride(node: Node) -> tuple[int, ...] | None:
    """The strides of a pooling of kernel 1, which only leaves positions out; None for another."""
    rank = POOLS.get(node.target) if node.op == "call_function" else None
    if rank is None or arg(node, 6, "divisor_override") not in (None, 1):
        return None
    kernel = _per_dim(arg(node, 1, "kernel_size"), rank)
    stride = _per_dim(arg(node, 2, "stride") or kernel, rank)
    padding = _per_dim(arg(node, 3, "padding", 0), rank)
    return stride if set(kernel) == {1} and set(padding) == {0} else None


def add_taps(one: Taps, other: Taps) -> Taps | None:
    """one + other over the same input, or None where it would cost more than the two.

    Groups become the coarsest that both fit into, kernels the smallest that hold both.
    """
    if one.stride != other.stride or one.weight.shape[0] != other.weight.shape[0]:
        return None
    groups = math.gcd(one.groups, other.groups)
    dims = range(len(one.stride))
    grids = [_grid({*one.offsets(d), *other.offsets(d)}) for d in dims]
    inputs = int(one.weight.shape[1]) * one.groups // groups
    if inputs != int(other.weight.shape[1]) * other.groups // groups:
        return None
    size = int(one.weight.shape[0]) * inputs * math.prod(len(g) for g in grids)
    if size > one.cost + other.cost:
        return None
    weight = _on_grids(one, groups, grids) + _on_grids(other, groups, grids)
    return _taps(weight, _sum(one.bias, other.bias), groups, one.stride, grids)


def composed_cost(first: Taps, second: Taps) -> int:
    """Multiply-adds per output position, and weights, of `compose(first, second)`."""
    groups = math.gcd(first.groups, second.groups)
    inputs = int(first.weight.shape[1]) * first.groups // groups
    grids = _composed_grids(first, second)
    return int(second.weight.shape[0]) * inputs * math.prod(len(g) for g in grids)


def compose(first: Taps, second: Taps) -> Taps:
    """second(first(x)) as one, for every tap of `second` that reads inside the value between."""
    groups = math.gcd(first.groups, second.groups)
    one = _regroup(first.weight, first.groups, groups)
    two = _regroup(second.weight, second.groups, groups)
    two = two.reshape(*two.shape[:2], -1)
    outs, mids, inputs = int(two.shape[0]), int(two.shape[1]), int(one.shape[1])

    def contract(rows: Tensor, columns: Tensor) -> Tensor:
        """(outs, mids) with (groups * mids, ...) over the channels between, group by group."""
        blocks = rows.reshape(groups, outs // groups, mids)
        return torch.bmm(blocks, columns.reshape(groups, mids, -1)).reshape(outs, -1)

    grids = _composed_grids(first, second)
    weight = one.new_zeros(outs, inputs, *map(len, grids))
    taps = itertools.product(*(range(size) for size in second.kernel))
    for index, tap in enumerate(taps):
        part = contract(two[:, :, index], one).reshape(outs, inputs, *first.kernel)
        weight[(slice(None), slice(None), *_places(first, second, tap, grids))] += part
    bias = second.bias
    if first.bias is not None:
        bias = _sum(contract(two.sum(2), first.bias).reshape(outs), bias)
    stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    return _taps(weight, bias, groups, stride, grids)


def insert(graph: FoldGraph, taps: Taps, source: Node, before: Node, like: Node) -> Node | None:
    """A convolution or linear op of these taps, whose output has the shape of `before`'s.

    Returns None where torch's padding cannot say it. `like` gives the module path.
    """
    shape, shape_in = shape_of(before), shape_of(source)
    if shape is None or shape_in is None:
        return None
    rank = len(taps.stride)
    padding = _padding(taps, shape_in[len(shape_in) - rank :], shape[len(shape) - rank :])
    if padding is None:
        return None
    hint = module_path(like) or "merged"
    weight = graph.add_const(taps.weight, before, f"{hint}_weight")
    bias = None if taps.bias is None else graph.add_const(taps.bias, before, f"{hint}_bias")
    target: Any = aten.linear.default
    arguments: tuple[Any, ...] = (source, weight, bias)
    if rank:
        target = (CONVS_NAMED_PADDING if isinstance(padding, str) else CONVS)[rank - 1]
        spacing = padding if isinstance(padding, str) else list(padding)
        arguments += (list(taps.stride), spacing, list(taps.step), taps.groups)
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(target, arguments)
    node.meta.update({**like.meta, "val": before.meta["val"]})
    return node


def _padding(
    taps: Taps, sizes_in: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[int, ...] | str | None:
    """The padding that puts the taps where they are and gives `sizes`, or None.

    Equal on both sides, or torch's "same", which has one zero more behind an even kernel.
    """
    front = tuple(-s for s in taps.start)
    spans = tuple(s * (k - 1) for s, k in zip(taps.step, taps.kernel, strict=True))
    made = tuple(
        (n + 2 * p - span - 1) // stride + 1
        for n, p, span, stride in zip(sizes_in, front, spans, taps.stride, strict=True)
    )
    if made == sizes:
        return front
    same = front == tuple(span // 2 for span in spans) and set(taps.stride) == {1}
    return "same" if same and sizes == sizes_in else None


def _taps(
    weight: Tensor, bias: Tensor | None, groups: int, stride: tuple[int, ...], grids: list[range]
) -> Taps:
    start, step = tuple(g.start for g in grids), tuple(g.step for g in grids)
    return Taps(weight, bias, groups, stride, start, step, weight.numel())


def _grid(offsets: set[int]) -> range:
    """The even steps, as wide as possible, that hit every offset."""
    low, high = min(offsets), max(offsets)
    step = math.gcd(*(offset - low for offset in offsets)) or 1
    return range(low, high + 1, step)


def _composed_grids(first: Taps, second: Taps) -> list[range]:
    return [
        _grid({a + first.stride[d] * b for a in first.offsets(d) for b in second.offsets(d)})
        for d in range(len(first.stride))
    ]


def _places(
    first: Taps, second: Taps, tap: tuple[int, ...], grids: list[range]
) -> tuple[slice, ...]:
    """Where on the grids the taps of `first` lie behind one tap of `second`."""
    found = []
    for d, grid in enumerate(grids):
        offset = first.start[d] + first.stride[d] * second.offsets(d)[tap[d]]
        begin = (offset - grid.start) // grid.step
        pace = max(first.step[d] // grid.step, 1)
        found.append(slice(begin, begin + pace * (first.kernel[d] - 1) + 1, pace))
    return tuple(found)


def _on_grids(taps: Taps, groups: int, grids: list[range]) -> Tensor:
    """The weight with zeros between and around its taps, and of fewer, larger groups."""
    weight = _regroup(taps.weight, taps.groups, groups)
    widened = weight.new_zeros(*weight.shape[:2], *map(len, grids))
    places = []
    for d, grid in enumerate(grids):
        begin = (taps.start[d] - grid.start) // grid.step
        pace = max(taps.step[d] // grid.step, 1)
        places.append(slice(begin, begin + pace * (taps.kernel[d] - 1) + 1, pace))
    widened[(slice(None), slice(None), *places)] = weight
    return widened


def _regroup(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The weight of `groups` groups as one of `fewer` (a divisor), block-diagonal in each."""
    out, inputs = int(weight.shape[0]), int(weight.shape[1])
    blocks = groups // fewer
    if blocks == 1:
        return weight
    group_of_out = torch.arange(out) // (out // groups)
    columns = (group_of_out % blocks)[:, None] * inputs + torch.arange(inputs)[None, :]
    expanded = weight.new_zeros(out, inputs * blocks, *weight.shape[2:])
    expanded[torch.arange(out)[:, None], columns] = weight
    return expanded


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one + other if one is not None and other is not None else one if other is None else other


def _per_dim(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))

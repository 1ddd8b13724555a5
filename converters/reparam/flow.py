"""Follow channels through ops that only move values, by running those ops on channel numbers.

A reshape-permute-split chain between a linear layer and its readers mixes heads and channels in
ways that differ from model to model. Instead of matching each spelling, the ops themselves are run
on a tensor that holds, at every place, the number of the channel it came from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.graph import FoldGraph, arg, aten, shape_of
from converters.reparam.linear_map import LinearMap, as_linear_map

# Ops whose every output value is a copy of one input value.
MOVES = {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.chunk.default,
    aten.unbind.int,
    aten.slice.Tensor,
    aten.select.int,
    operator.getitem,
}

# Views need strides that fit, and the channel numbers have strides of their own.
_VIEWS = {aten.view.default, aten._unsafe_view.default}

# Ops that act on each channel apart and commute with a scale and a shift per channel.
_CHANNEL_MEANS = {aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default}


def is_move(node: Node) -> bool:
    """Whether the op only moves values, with nothing but constants beside its first argument."""
    return (
        node.op == "call_function"
        and node.target in MOVES
        and all(not isinstance(a, Node) for a in node.args[1:])
    )


def run_move(node: Node, value: Any) -> Any:
    """Run a moving op on `value` in place of its input."""
    target: Any = aten.reshape.default if node.target in _VIEWS else node.target
    return target(value, *node.args[1:], **node.kwargs)


def channel_numbers(shape: tuple[int, ...], dim: int) -> Tensor:
    """A tensor of `shape` holding each place's index along `dim`."""
    numbers = torch.arange(shape[dim])
    return numbers.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def dim_of_channels(numbers: Tensor, channels: int) -> int | None:
    """The dimension along which `numbers` still counts 0..channels-1, or None."""
    for dim, size in enumerate(numbers.shape):
        if size == channels and torch.equal(numbers, channel_numbers(tuple(numbers.shape), dim)):
            return dim
    return None


def linear_readers(graph: FoldGraph, node: Node, dim: int) -> list[LinearMap] | None:
    """Every reader of `node` as a linear map over its dimension `dim`, or None if one is none.

    Looks through ops that commute with a scale and a shift per channel: means over other
    dimensions and moves that keep the channels in order.
    """
    shape = shape_of(node)
    if shape is None or not node.users:
        return None
    found: list[LinearMap] = []
    for user in node.users:
        linear = as_linear_map(graph, user)
        if linear is not None:
            if linear.source is not node or linear.channel_dim(len(shape)) != dim:
                return None
            found.append(linear)
            continue
        behind = _dim_behind(user, shape, dim)
        if behind is None:
            return None
        further = linear_readers(graph, user, behind)
        if further is None:
            return None
        found += further
    return found


def _dim_behind(user: Node, shape: tuple[int, ...], dim: int) -> int | None:
    """Where the channel dimension lies after `user`, or None where a scale cannot pass it."""
    if user.op != "call_function":
        return None
    if user.target in _CHANNEL_MEANS:
        if user.target is aten.mean.dim:
            dims = {d % len(shape) for d in arg(user, 1, "dim") or range(len(shape))}
            if dim in dims:
                return None
            keep = bool(arg(user, 2, "keepdim", False))
            return dim if keep else dim - sum(d < dim for d in dims)
        return dim if dim == len(shape) - (3 if "2d" in str(user.target) else 2) else None
    if is_move(user):
        moved = run_move(user, channel_numbers(shape, dim))
        return dim_of_channels(moved, shape[dim]) if isinstance(moved, Tensor) else None
    return None


def source_of_moves(graph: FoldGraph, node: Node) -> tuple[LinearMap, Tensor] | None:
    """The linear map whose outputs `node` shows, and the channel number at each place of `node`."""
    chain: list[Node] = []
    at = node
    while is_move(at):
        chain.append(at)
        first = at.args[0]
        if not isinstance(first, Node):
            return None
        at = first
    linear = as_linear_map(graph, at)
    shape = shape_of(at)
    if linear is None or shape is None:
        return None
    numbers: Any = channel_numbers(shape, linear.channel_dim(len(shape)))
    for move in reversed(chain):
        numbers = run_move(move, numbers)
    return (linear, numbers) if isinstance(numbers, Tensor) else None


def scale_rows(
    graph: FoldGraph, value: Node, reader: Node, factor: Tensor, shift: Tensor | None = None
) -> bool:
    """Let the linear map behind `value` give factor * y + shift, if only `reader` sees those rows.

    Both broadcast to the shape of `value`. False, and nothing is changed, where there is no such
    map, where a row would need two factors, and where somebody else reads one of the rows.
    """
    source = source_of_moves(graph, value)
    shape = shape_of(value)
    if source is None or shape is None or tuple(source[1].shape) != shape:
        return False
    linear, numbers = source
    flat = numbers.reshape(-1)
    factors = _per_row(factor, shape, linear, flat, default=1.0)
    shifts = None if shift is None else _per_row(shift, shape, linear, flat, default=0.0)
    if factors is None or (shift is not None and shifts is None):
        return False
    if read_elsewhere(linear, flat, value, reader):
        return False
    linear.scale_output(factors, shifts)
    return True


def _per_row(
    numbers: Tensor, shape: tuple[int, ...], linear: LinearMap, flat: Tensor, default: float
) -> Tensor | None:
    """One number per row of the map, (out,); `flat` says which row each place of `shape` shows."""
    spread = numbers.to(linear.weight.dtype).expand(shape).reshape(-1)
    rows = torch.full((int(linear.weight.shape[0]),), default, dtype=linear.weight.dtype)
    rows[flat] = spread
    return rows if torch.equal(rows[flat], spread) else None


def read_elsewhere(linear: LinearMap, channels: Tensor, at: Node, reader: Node) -> bool:
    """Whether anybody but `reader` (reading `at`) sees one of `channels` of the map's output."""
    shape = shape_of(linear.node)
    if shape is None:
        return True
    numbers = channel_numbers(shape, linear.channel_dim(len(shape)))
    wanted = torch.zeros(int(linear.weight.shape[0]), dtype=torch.bool)
    wanted[channels] = True
    return any(
        bool(wanted[seen.reshape(-1)].any())
        for node, user, seen in _reads(linear.node, numbers)
        if not (node is at and user is reader)
    )


def _reads(node: Node, numbers: Any) -> Iterator[tuple[Node, Node, Tensor]]:
    """(value, reader, channel numbers seen) for every reader behind the moves after `node`."""
    for user in node.users:
        if is_move(user):
            yield from _reads(user, run_move(user, numbers))
        else:
            for part in numbers if isinstance(numbers, list | tuple) else [numbers]:
                yield node, user, part

"""One linear map after another: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).

Only where nobody else reads the value between, and where the product has no more multiply-adds and
no more weights than the two: not a bottleneck, not a depthwise before a dense convolution. A
pooling of kernel 1 before or behind a convolution is a map too, and becomes its stride.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, arg, shape_of
from converters.reparam.linear_map import LINEAR_MAPS, LinearMap, as_linear_map
from converters.reparam.taps import (
    POOLS,
    Taps,
    compose,
    composed_cost,
    diagonal_taps,
    insert,
    pool_stride,
    taps_of,
)


@dataclass(frozen=True)
class Link:
    """One map of a chain; weights count those that would go with it."""

    node: Node
    source: Node
    taps: Taps
    weights: int


@rule("consecutive linear maps into one")
def merge_chain(graph: FoldGraph) -> int:
    """Two maps in a row, of which the second alone reads the first."""
    fired = 0
    for node in graph.calls(*LINEAR_MAPS, *POOLS):
        between = node.args[0]
        if not isinstance(between, Node) or len(between.users) != 1:
            continue
        first, second = _links(graph, between, node)
        if first is None or second is None or first.source in graph.written:
            continue
        if not _exact(first, second) or not _worth_it(first, second):
            continue
        taps = compose(first.taps, second.taps)
        like = node if node.target in LINEAR_MAPS else between
        made = insert(graph, taps, first.source, node, like)
        if made is not None:
            graph.replace(node, made)
            fired += 1
    return fired


def _links(graph: FoldGraph, before: Node, after: Node) -> tuple[Link | None, Link | None]:
    """Both as maps over the same dimensions, one of them with weights; None for what is none."""
    maps = as_linear_map(graph, before), as_linear_map(graph, after)
    ranks = {found.kernel_rank for found in maps if found is not None}
    if len(ranks) != 1:
        return None, None
    (rank,) = ranks
    first, second = (
        _link(graph, node, found, rank) for node, found in zip((before, after), maps, strict=True)
    )
    return first, second


def _link(graph: FoldGraph, node: Node, linear: LinearMap | None, rank: int) -> Link | None:
    if linear is not None:
        return Link(node, linear.source, taps_of(linear), _own_weights(linear))
    stride, shape = pool_stride(node), shape_of(node)
    source, dtype = node.args[0] if node.args else None, graph.dtype_of(node)
    if stride is None or len(stride) != rank or shape is None or dtype is None:
        return None
    if not isinstance(source, Node) or not graph.written.isdisjoint((node, source)):
        return None
    ones = torch.ones(shape[len(shape) - rank - 1], dtype=dtype)
    return Link(node, source, diagonal_taps(ones, None, stride), 0)


def _own_weights(linear: LinearMap) -> int:
    """The numbers in weight and bias that no other op reads."""
    sources = arg(linear.node, 1, "weight"), arg(linear.node, 2, "bias")
    tensors = linear.weight, linear.bias
    return sum(
        tensor.numel()
        for node, tensor in zip(sources, tensors, strict=True)
        if tensor is not None and isinstance(node, Node) and len(node.users) == 1
    )


def _exact(first: Link, second: Link) -> bool:
    """Whether every zero that the second pads is what the first gives outside the picture.

    Outside, W1 x + b1 is zero where W1 has one tap along that dimension and b1 is zero.
    """
    shape, shape_out = shape_of(first.node), shape_of(second.node)
    if shape is None or shape_out is None:
        return False
    rank = len(second.taps.stride)
    sizes, sizes_out = shape[len(shape) - rank :], shape_out[len(shape_out) - rank :]
    outside = []
    for d in range(rank):
        offsets = second.taps.offsets(d)
        last = second.taps.stride[d] * (sizes_out[d] - 1) + offsets[-1]
        if offsets[0] < 0 or last >= sizes[d]:
            outside.append(d)
    if not outside:
        return True
    bias = first.taps.bias
    shifts = bias is not None and bool((bias != 0).any())
    return not shifts and all(first.taps.kernel[d] == 1 for d in outside)


def _worth_it(first: Link, second: Link) -> bool:
    """No more multiply-adds and no more weights than the two maps apart."""
    cost = composed_cost(first.taps, second.taps)
    places, places_between = _places(first, second.node), _places(first, first.node)
    if cost * places > first.taps.cost * places_between + second.taps.cost * places:
        return False
    biases = first.taps.bias is not None or second.taps.bias is not None
    weights = cost + biases * int(second.taps.weight.shape[0])
    return weights <= first.weights + second.weights


def _places(first: Link, node: Node) -> int:
    """Output positions of a node, without its channels."""
    shape = shape_of(node) or (0,)
    rank = len(first.taps.stride)
    dim = len(shape) - rank - 1
    return math.prod(size for d, size in enumerate(shape) if d != dim)

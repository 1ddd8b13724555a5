"""Linear branches over one input, added: one linear map.

W1 x + W2 x = (W1 + W2) x. A branch is a convolution or linear layer, a batch norm, a constant
scale, a pooling of kernel 1 (every s-th position) or x itself. Kernels are laid into each other
where strides and padding let their taps meet, groups are widened to the coarsest, and a sum may be
as long and as nested as it likes. What would cost more multiply-adds merged than apart stays apart:
a depthwise next to a dense convolution goes into the dense one of the same kernel, two depthwise
stay depthwise, a 1x3 next to a 3x1 stays a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.batch_norm import BATCH_NORM, scale_and_shift
from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, shape_of
from converters.reparam.linear_map import as_linear_map
from converters.reparam.scales import MULS, per_channel, scaled_value
from converters.reparam.sums import Sum, Term, sums, write_sum
from converters.reparam.taps import Taps, add_taps, diagonal_taps, insert, pool_stride, taps_of


@dataclass(frozen=True)
class Frame:
    """What branches have in common: the input, where its channels lie, the rank of the kernel."""

    source: Node
    channel_dim: int
    kernel_rank: int


@dataclass
class Branch:
    """The terms that are merged by now, and their sum, signs included."""

    terms: list[Term]
    taps: Taps


@rule("parallel linear maps into one")
def merge_branches(graph: FoldGraph) -> int:
    """Convolutions, linear layers, norms, scales and poolings of kernel 1 over the same input."""
    return _merge_sums(graph, skips=False)


@rule("residual into the linear map")
def merge_identity(graph: FoldGraph) -> int:
    """x + W x: x is the identity tap of W, where W has stride 1 and keeps the shape."""
    return _merge_sums(graph, skips=True)


def _merge_sums(graph: FoldGraph, *, skips: bool) -> int:
    fired = 0
    for found in sums(graph):
        before = len(found.terms)
        for frame in _frames(graph, found):
            _merge_in(graph, found, frame, skips)
        if len(found.terms) < before:
            fired += before - len(found.terms)
            write_sum(graph, found)
    return fired


def _frames(graph: FoldGraph, found: Sum) -> list[Frame]:
    """The inputs of linear maps among the terms, then those of norms."""
    shape = shape_of(found.root)
    assert shape is not None
    strong: dict[Frame, None] = {}
    weak: dict[Frame, None] = {}
    for node, _ in found.terms:
        linear = as_linear_map(graph, node)
        if linear is not None:
            dim = linear.channel_dim(len(shape))
            strong[Frame(linear.source, dim, linear.kernel_rank)] = None
        elif node.target is BATCH_NORM and len(shape) > 2 and isinstance(node.args[0], Node):
            weak[Frame(node.args[0], 1, len(shape) - 2)] = None
    return list(strong | weak)


def _merge_in(graph: FoldGraph, found: Sum, frame: Frame, skips: bool) -> None:
    """Merge the terms over one input: one term takes the place of those that merge."""
    if frame.source in graph.written:  # two branches may have read different values
        return
    kept: list[Term] = []
    branches: list[Branch] = []
    for term in found.terms:
        taps = _taps_of_term(graph, found, term.node, frame, skips)
        if taps is None:
            kept.append(term)
        else:
            branches.append(Branch([term], taps if term.sign > 0 else _negated(taps)))
    # The widest first, so that the others find their taps in it.
    branches.sort(key=lambda branch: -branch.taps.weight.numel())
    merged: list[Branch] = []
    for branch in branches:
        if not any(_absorb(whole, branch) for whole in merged):
            merged.append(branch)
    for branch in merged:
        made = None
        if len(branch.terms) > 1:
            made = insert(graph, branch.taps, frame.source, found.root, branch.terms[0].node)
        kept += branch.terms if made is None else [Term(made, 1)]
    found.terms = kept


def _absorb(whole: Branch, branch: Branch) -> bool:
    """Add a branch to what is merged by now, if that costs no more than the two."""
    added = add_taps(whole.taps, branch.taps)
    if added is None:
        return False
    whole.taps = added
    whole.terms += branch.terms
    return True


def _negated(taps: Taps) -> Taps:
    return replace(taps, weight=-taps.weight, bias=None if taps.bias is None else -taps.bias)


def _taps_of_term(
    graph: FoldGraph, found: Sum, node: Node, frame: Frame, skips: bool
) -> Taps | None:
    """The term as taps over the frame's input, or None where it is none or is read elsewhere."""
    if node is frame.source:
        return _identity(graph, frame, (1,) * frame.kernel_rank) if skips else None
    if node.op != "call_function" or node in graph.written or not found.alone_reads(node):
        return None
    linear = as_linear_map(graph, node)
    if linear is None:
        return _diagonal(graph, node, frame)
    if linear.source is not frame.source or linear.kernel_rank != frame.kernel_rank:
        return None
    return taps_of(linear)


def _diagonal(graph: FoldGraph, node: Node, frame: Frame) -> Taps | None:
    """A scale, a norm or a pooling of kernel 1 over the frame's input."""
    stride = pool_stride(node)
    if stride is not None:
        fits = node.args[0] is frame.source and len(stride) == frame.kernel_rank
        return _identity(graph, frame, stride) if fits else None
    affine = _scale(graph, node, frame) if node.target in MULS else _norm(graph, node, frame)
    dtype = graph.dtype_of(frame.source)
    if affine is None or dtype is None:
        return None
    scale, shift = affine
    shift = None if shift is None else shift.to(dtype)
    return diagonal_taps(scale.to(dtype), shift, (1,) * frame.kernel_rank, len(scale))


def _scale(graph: FoldGraph, node: Node, frame: Frame) -> tuple[Tensor, None] | None:
    scaled, shape = scaled_value(graph, node), shape_of(node)
    if scaled is None or shape is None or scaled[0] is not frame.source:
        return None
    factors = per_channel(scaled[1], shape, frame.channel_dim)
    return None if factors is None else (factors, None)


def _norm(graph: FoldGraph, node: Node, frame: Frame) -> tuple[Tensor, Tensor] | None:
    if node.target is not BATCH_NORM or node.args[0] is not frame.source or frame.channel_dim != 1:
        return None
    return scale_and_shift(graph, node)


def _identity(graph: FoldGraph, frame: Frame, stride: tuple[int, ...]) -> Taps | None:
    shape, dtype = shape_of(frame.source), graph.dtype_of(frame.source)
    if shape is None or dtype is None or not dtype.is_floating_point:
        return None
    return diagonal_taps(torch.ones(shape[frame.channel_dim], dtype=dtype), None, stride)

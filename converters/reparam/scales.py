"""Constant scales (layer scale, attention scale, input std) into a linear map beside them.

A scale may sit behind a reshape-permute-split chain or behind a matrix product (the attention
scale, which goes to the query's rows). Which rows it reaches is found by following the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.flow import linear_readers, scale_rows
from converters.reparam.graph import FoldGraph, aten, shape_of

MULS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
DIVS = (aten.div.Tensor, aten.div.Scalar)
PRODUCTS = (aten.matmul.default, aten.bmm.default)


def scaled_value(graph: FoldGraph, node: Node) -> tuple[Node, Tensor] | None:
    """The value that a multiplication scales, and the constant scale (0-d where it is a number)."""
    first, second = node.args[0], node.args[1]
    if node.target not in DIVS and graph.const(first) is not None:
        first, second = second, first
    if not isinstance(first, Node) or graph.const(first) is not None:
        return None
    if isinstance(second, int | float):
        factor = torch.tensor(float(second), dtype=torch.float64)
    else:
        found = graph.const(second)
        if found is None or not found.is_floating_point():
            return None
        factor = found
    shape = shape_of(first)
    if shape is None or shape_of(node) != shape:  # a scale that broadcasts the value is none
        return None
    if graph.dtype_of(first) != graph.dtype_of(node):  # whole numbers become fractions
        return None
    if node.target in DIVS:
        factor = 1 / factor
    return first, factor.reshape(()) if factor.numel() == 1 else factor


@rule("scale into the linear map before it")
def fold_into_previous(graph: FoldGraph) -> int:
    """y = c * moves(W x + b): the rows that the moves show are scaled, if only y reads them."""
    fired = 0
    for node in graph.calls(*MULS):
        scaled = scaled_value(graph, node)
        if scaled is not None and scale_rows(graph, scaled[0], node, scaled[1]):
            graph.replace(node, scaled[0])
            fired += 1
    return fired


@rule("attention scale into the query")
def fold_through_product(graph: FoldGraph) -> int:
    """c * (a @ b) = (c a) @ b for a number c, where a or b comes from a linear map."""
    fired = 0
    for node in graph.calls(*MULS):
        scaled = scaled_value(graph, node)
        if scaled is None or scaled[1].dim() != 0:
            continue
        product, factor = scaled
        if product.op != "call_function" or product.target not in PRODUCTS:
            continue
        if len(product.users) != 1 or product.args[0] is product.args[1]:  # c(aa) is no (ca)(ca)
            continue
        for side in product.args[:2]:
            if isinstance(side, Node) and scale_rows(graph, side, product, factor):
                graph.replace(node, product)
                fired += 1
                break
    return fired


@rule("scale into the linear maps after it")
def fold_into_next(graph: FoldGraph) -> int:
    """W (c x) = (W c) x, where every reader of c x is a linear map. Zero padding stays zero."""
    fired = 0
    for node in graph.calls(*MULS):
        scaled = scaled_value(graph, node)
        shape = shape_of(node)
        if scaled is None or shape is None:
            continue
        for dim, size in enumerate(shape):
            factors = per_channel(scaled[1], shape, dim)
            if factors is None:
                continue
            readers = linear_readers(graph, node, dim)
            if readers is None:
                continue
            assert factors.numel() == size
            for reader in readers:
                reader.absorb_input(factors.to(reader.weight.dtype), None)
            graph.replace(node, scaled[0])
            fired += 1
            break
    return fired


def per_channel(factor: Tensor, shape: tuple[int, ...], dim: int) -> Tensor | None:
    """The scale as one number per index of `dim`, or None where it varies along another."""
    if factor.dim() == 0:
        return factor.expand(shape[dim])
    aligned = factor.reshape([1] * (len(shape) - factor.dim()) + list(factor.shape))
    varying = [d for d, size in enumerate(aligned.shape) if size != 1]
    return aligned.reshape(-1) if varying == [dim] else None

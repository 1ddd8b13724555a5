"""Linear branches over one input, added: one linear map.

W1 x + W2 x = (W1 + W2) x for two maps of one geometry (averaged heads), and W x + x = (W + I) x
where the map keeps the shape (the residual around a depthwise convolution).
"""

from __future__ import annotations

from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, arg, aten
from converters.reparam.linear_map import LinearMap, as_linear_map


@rule("parallel linear maps into one")
def merge_branches(graph: FoldGraph) -> int:
    """Two maps of one geometry over the same input, read only by their sum."""
    fired = 0
    for node, left, right in _sums(graph):
        one, other = as_linear_map(graph, left), as_linear_map(graph, right)
        if one is None or other is None or one.node is other.node:
            continue
        if one.source is not other.source or not one.same_geometry(other):
            continue
        if not (_only_read_by(one, node) and _only_read_by(other, node)):
            continue
        if one.source in graph.written:  # the two may have read different values
            continue
        bias = one.bias if other.bias is None else other.bias
        if one.bias is not None and other.bias is not None:
            bias = one.bias + other.bias
        one.write(one.weight + other.weight, bias)
        graph.replace(node, one.node)
        fired += 1
    return fired


@rule("residual into the linear map")
def merge_identity(graph: FoldGraph) -> int:
    """x + W x, where W keeps the shape: the identity is added to W's centre tap."""
    fired = 0
    for node, left, right in _sums(graph):
        for branch, skip in ((left, right), (right, left)):
            linear = as_linear_map(graph, branch)
            if linear is None or linear.source is not skip or not _only_read_by(linear, node):
                continue
            identity = linear.identity()
            if identity is None:
                continue
            linear.write(linear.weight + identity, linear.bias)
            graph.replace(node, linear.node)
            fired += 1
            break
    return fired


def _sums(graph: FoldGraph) -> list[tuple[Node, Node, Node]]:
    found = []
    for node in graph.calls(aten.add.Tensor):
        left, right = node.args[0], node.args[1]
        if isinstance(left, Node) and isinstance(right, Node) and arg(node, 2, "alpha", 1) == 1:
            found.append((node, left, right))
    return found


def _only_read_by(linear: LinearMap, reader: Node) -> bool:
    return list(linear.node.users) == [reader]

"""Ops that return their input: dropout in evaluation, aliases, guards, pooling of one pixel."""

from __future__ import annotations

from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, arg, aten, shape_of
from converters.reparam.taps import pool_stride

_ALWAYS = {aten.alias.default, aten.detach.default}
_COPIES = {aten.lift_fresh_copy.default}
_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_NEUTRAL = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
}
# Each keeps the values in their order, whatever the shape.
_ORDER_KEEPING = {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
_LIKE_ANOTHER = {aten.reshape_as.default, aten.view_as.default}
_RESHAPES = {aten.reshape.default, aten.view.default, aten.expand.default, aten.flatten.using_ints}


@rule("remove no-ops")
def remove_noops(graph: FoldGraph) -> int:
    """Take away calls that change nothing. Dropout in training mode stays."""
    fired = 0
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            # torch.export's shape guards: our inputs are checked at the session.
            graph.graph.erase_node(node)
            fired += 1
        elif node.op == "call_function" and _returns_its_input(graph, node):
            graph.replace(node, node.args[0])
            fired += 1
        elif (origin := _reshaped_back(graph, node)) is not None:
            graph.replace(node, origin)
            fired += 1
        elif node.op == "call_function" and node.target in _LIKE_ANOTHER:
            # The other is read for its shape only, which keeps it from being seen as unread.
            shape = shape_of(node)
            if shape is not None and len(node.args) == 2:
                node.target, node.args = aten.reshape.default, (node.args[0], list(shape))
                fired += 1
    return fired


def _returns_its_input(graph: FoldGraph, node: Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    if node.target in _ALWAYS:
        return True
    if node.target in _COPIES or _computes_nothing(graph, node):
        # A copy that is written into protects its original.
        return graph.written.isdisjoint((node, source))
    if node.target in _DROPOUTS:
        return not arg(node, 2, "train", True)
    if node.target in _RESHAPES:
        shape = shape_of(node)
        return shape is not None and shape == shape_of(source)
    return False


def _reshaped_back(graph: FoldGraph, node: Node) -> Node | None:
    """The value that a chain of reshapes began with, where `node` has its shape again."""
    shape, at = shape_of(node), node
    while at.op == "call_function" and at.target in _ORDER_KEEPING and at not in graph.written:
        source = at.args[0]
        if not isinstance(source, Node) or source in graph.written:
            return None
        at = source
        if shape is not None and shape_of(at) == shape:
            return at
    return None


def _computes_nothing(graph: FoldGraph, node: Node) -> bool:
    """x + 0, x * 1, and pooling over one pixel at every pixel."""
    source = node.args[0]
    assert isinstance(source, Node)
    if node.target in _NEUTRAL:
        number = node.args[1]
        same = shape_of(node) == shape_of(source) and graph.dtype_of(node) == graph.dtype_of(source)
        return isinstance(number, int | float) and number == _NEUTRAL[node.target] and same
    stride = pool_stride(node)
    return stride is not None and set(stride) == {1}

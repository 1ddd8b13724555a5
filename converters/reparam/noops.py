"""Ops that return their input: dropout in evaluation, aliases, guards."""

from __future__ import annotations

from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, arg, aten, shape_of

_ALWAYS = {aten.alias.default, aten.detach.default}
_COPIES = {aten.lift_fresh_copy.default}
_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
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
    return fired


def _returns_its_input(graph: FoldGraph, node: Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    if node.target in _ALWAYS:
        return True
    if node.target in _COPIES:  # a copy that is written into protects its original
        return graph.written.isdisjoint((node, source))
    if node.target in _DROPOUTS:
        return not arg(node, 2, "train", True)
    if node.target in _RESHAPES:
        shape = shape_of(node)
        return shape is not None and shape == shape_of(source)
    return False

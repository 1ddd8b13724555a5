"""Which values of an exported graph share memory, and which of them an in-place op writes into.

torch.export keeps in-place ops and views as they are. A rule that reads a value at another place
in the graph is exact only where nobody writes into that value in between.
"""

from __future__ import annotations

import operator

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

# Ops that may hand out their input's memory and whose schema does not say so.
_UNDECLARED = {operator.getitem, aten.type_as.default}

# Tagged as if it did, since training writes into the statistics; its output is always new.
_NEW = {aten.batch_norm.default}


def storages(graph: Graph) -> dict[Node, Node]:
    """Each node and the first node, in graph order, whose memory its value may share."""
    owner: dict[Node, Node] = {}
    for node in graph.nodes:
        source = shares_with(node)
        owner[node] = node if source is None else owner[source]
    return owner


def shares_with(node: Node) -> Node | None:
    """The argument whose memory the node's value may share, or None where it has its own."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    if node.target in _UNDECLARED:
        return node.args[0]
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target in _NEW:
        return None
    declared = any(result.alias_info is not None for result in schema.returns)
    maybe = torch.Tag.maybe_aliasing_or_mutating in getattr(node.target, "tags", ())
    return node.args[0] if declared or maybe else None


def writes(node: Node) -> list[Node]:
    """The arguments that the node writes into."""
    if isinstance(node.target, HigherOrderOperator):
        return _writes_inside(node)
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    written = [
        node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        for index, argument in enumerate(schema.arguments)
        if argument.is_write
    ]
    return [value for value in written if isinstance(value, Node)]


def _writes_inside(node: Node) -> list[Node]:
    """All tensors given to an autocast block or a branch that has an in-place op in it."""
    owner = node.graph.owning_module
    given = [n for n in node.all_input_nodes if n.op == "get_attr"]
    parts = {n: operator.attrgetter(str(n.target))(owner) for n in given}
    graphs = [part.graph for part in parts.values() if isinstance(part, GraphModule)]
    if not any(writes(inner) for graph in graphs for inner in graph.nodes):
        return []
    return [n for n in node.all_input_nodes if not isinstance(parts.get(n), GraphModule)]


def written_values(graph: Graph) -> set[Node]:
    """Every node whose memory some op of the graph writes into."""
    targets = [value for node in graph.nodes for value in writes(node)]
    if not targets:
        return set()
    owner = storages(graph)
    owners = {owner[value] for value in targets}
    return {node for node in graph.nodes if owner[node] in owners}

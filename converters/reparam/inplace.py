"""In-place ops, which torch.export keeps, made out of place where nobody can tell the difference.

`y = relu_(x)` becomes `y = relu(x)` if nobody reads the memory of x after it but through y. What
stays in place is left alone by every rule (FoldGraph.written).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, aten
from converters.reparam.storage import shares_with, storages, writes


@rule("in-place ops out of place")
def make_functional(graph: FoldGraph) -> int:
    """ReLU(inplace=True), x += y, fill_ and their like, where the old value is read no more."""
    fired = 0
    for node in [n for n in graph.graph.nodes if writes(n)]:
        functional = _functional_form(node)
        if functional is None or not _same_types(graph, node) or _old_value_is_read(graph, node):
            continue
        node.target = functional
        graph.forget_writes()
        fired += 1
    return fired


def _functional_form(node: Node) -> Any:
    """relu for relu_, add.Tensor for add_.Tensor; None where there is none or it is random."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None)
    if not name.endswith("_") or packet is None or writes(node) != [node.args[0]]:
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    overload = target._overloadname
    return getattr(packet, overload) if overload in packet.overloads() else None


def _same_types(graph: FoldGraph, node: Node) -> bool:
    """Whether the op promotes nothing: in place it keeps its first argument's type."""
    types = {graph.dtype_of(source) for source in node.all_input_nodes}
    return len(types) == 1 and None not in types


def _old_value_is_read(graph: FoldGraph, node: Node) -> bool:
    """Whether anybody after `node` reads the memory that it writes, but through its result.

    A weight that is written into keeps its new value for the next run, which counts as reading.
    """
    owner = storages(graph.graph)
    if owner[node].op == "get_attr" and node.target is not aten.detach_.default:
        return True
    place = {n: index for index, n in enumerate(graph.graph.nodes)}
    through_result = {node}
    for other in graph.graph.nodes:
        if owner[other] is not owner[node] or other is node:
            continue
        if shares_with(other) in through_result:
            through_result.add(other)
        elif any(place[user] > place[node] for user in other.users):
            return True
    return False

"""Additions and subtractions of an exported graph as flat sums, however they are nested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch.fx import Node

from converters.reparam.graph import FoldGraph, arg, aten, shape_of

ADDITIONS = (aten.add.Tensor, aten.sub.Tensor)


class Term(NamedTuple):
    """One addend: sign * node, where sign is 1 or -1."""

    node: Node
    sign: int


@dataclass
class Sum:
    """Terms of one shape and type, the ops that add them, and the last of these, the root."""

    root: Node
    ops: set[Node]
    terms: list[Term]

    def alone_reads(self, node: Node) -> bool:
        """Whether nobody but this sum reads the value."""
        return all(user in self.ops for user in node.users)


def sums(graph: FoldGraph) -> Iterator[Sum]:
    """Every sum that is no part of a longer one, the last in the graph first."""
    inner: set[Node] = set()
    for node in reversed(list(graph.calls(*ADDITIONS))):
        if node in inner or not _adds_like_tensors(graph, node):
            continue
        found = Sum(node, {node}, [])
        _gather(graph, found, node, 1)
        inner |= found.ops
        yield found


def write_sum(graph: FoldGraph, changed: Sum) -> None:
    """Put the sum of `changed.terms` in the place of its root; at least one term has sign 1."""
    terms = sorted(changed.terms, key=lambda term: -term.sign)
    total = terms[0].node
    assert terms[0].sign == 1
    for node, sign in terms[1:]:
        target = aten.add.Tensor if sign > 0 else aten.sub.Tensor
        with graph.graph.inserting_before(changed.root):
            total = graph.graph.call_function(target, (total, node))
        total.meta.update(changed.root.meta)
    graph.replace(changed.root, total)


def _adds_like_tensors(graph: FoldGraph, node: Node) -> bool:
    """Whether both sides are tensors of the sum's own shape and type."""
    sides = node.args[:2]
    if len(sides) != 2 or arg(node, 2, "alpha", 1) != 1:
        return False
    return all(
        isinstance(side, Node)
        and shape_of(side) == shape_of(node) is not None
        and graph.dtype_of(side) == graph.dtype_of(node)
        for side in sides
    )


def _gather(graph: FoldGraph, found: Sum, node: Node, sign: int) -> None:
    """Add the terms under `node`; an addition that only this sum reads is part of it."""
    left, right = node.args[0], node.args[1]
    for side, own in ((left, 1), (right, -1 if node.target is aten.sub.Tensor else 1)):
        assert isinstance(side, Node)
        if left is not right and _is_part(graph, side):
            found.ops.add(side)
            _gather(graph, found, side, sign * own)
        else:
            found.terms.append(Term(side, sign * own))


def _is_part(graph: FoldGraph, node: Node) -> bool:
    return (
        node.op == "call_function"
        and node.target in ADDITIONS
        and len(node.users) == 1
        and graph.written.isdisjoint((node, *node.all_input_nodes))
        and _adds_like_tensors(graph, node)
    )

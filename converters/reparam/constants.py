"""Whatever is computed from constants alone is computed once, here, where that is worth its bytes.

Attention biases gathered by a fixed index, layer scales viewed as (1, C, 1, 1), positional tables
that the model computes anew at every call.

A constant may be much larger than what it is computed from, so folding can make a file grow for
nothing. The limit: an op that every engine runs inside its delegate, in about the time that reading
its stored result would take (float arithmetic, products, softmax, moves), is folded only where the
result is no larger than the constants that go with it. ConViT's position scores, a linear map of a
(196, 196, 3) table in every layer, stay computed: stored they are a quarter of its parameters. The
table itself, which every layer brings anew, is kept once. All other ops are folded, with whatever
leads to them: gathers by an index, integer arithmetic, ranges, sines, interpolation. No delegate
takes them all, each would cut the graph in pieces, and at run time the memory would be the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, aten, module_path
from converters.reparam.linear_map import LINEAR_MAPS

# No constant may get larger than this by folding.
MAX_BYTES = 16 * 2**20

# Below this the bytes do not matter and the op does: scales, shifts, tokens.
SMALL_BYTES = 16 * 2**10

# Overloads do not matter here: add stands for add.Tensor and add.Scalar.
_CHEAP = {target.overloadpacket for target in LINEAR_MAPS} | {
    aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm,
    aten.add, aten.sub, aten.mul, aten.div, aten.neg,
    aten.sigmoid, aten.tanh, aten.relu, aten.softmax, aten.mean, aten.sum,
    aten.reshape, aten.view, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze,
    aten.permute, aten.transpose, aten.t, aten.contiguous, aten.clone, aten.slice, aten.select,
    aten.expand, aten.expand_as, aten.repeat, aten.cat, aten.stack,
}  # fmt: skip


@rule("equal constants into one")
def share_constants(graph: FoldGraph) -> int:
    """Tables that several layers store with the same values: all read the first."""
    fired = 0
    first: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.graph.nodes:
        value = graph.const(node)
        if value is None or value.nbytes <= SMALL_BYTES or not node.users:
            continue
        start = tuple(value.flatten()[:8].tolist())
        alike = first.setdefault((value.dtype, value.shape, start), [])
        for other in alike:
            known = graph.const(other)
            if other.target != node.target and known is not None and torch.equal(known, value):
                node.replace_all_uses_with(other)
                fired += 1
                break
        else:
            alike.append(node)
    return fired


@rule("fold constants")
def fold_constants(graph: FoldGraph) -> int:
    """Replace pure calls on constants by their value. Random ops are left alone."""
    fired = 0
    computable = _computable(graph)
    needed = _needed(computable)
    for node in computable:
        sources = node.all_input_nodes
        if not node.users or any(graph.const(source) is None for source in sources):
            continue
        size = _bytes(node)
        if size > MAX_BYTES or (node not in needed and size > _allowed(graph, node, sources)):
            continue
        value = _evaluate(graph, node)
        constant = graph.add_const(value, node, module_path(node) or node.name)
        constant.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        graph.replace(node, constant)
        fired += 1
    return fired


def _computable(graph: FoldGraph) -> list[Node]:
    """Every pure call, in graph order, that depends on constants alone and gives one tensor."""
    found: dict[Node, None] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in graph.written:
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.is_mutable:
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        if not isinstance(node.meta.get("val"), Tensor):
            continue
        if all(s in found or graph.const(s) is not None for s in node.all_input_nodes):
            found[node] = None
    return list(found)


def _needed(computable: list[Node]) -> set[Node]:
    """Those that engines do not all take, and what leads to them."""
    needed: set[Node] = set()
    for node in reversed(computable):
        packet = getattr(node.target, "overloadpacket", None)
        cheap = packet in _CHEAP and node.meta["val"].is_floating_point()
        if not cheap or any(user in needed for user in node.users):
            needed.add(node)
    return needed


def _allowed(graph: FoldGraph, node: Node, sources: Iterable[Node]) -> int:
    """Bytes that the result of a cheap op may have: those of the constants it alone reads."""
    freed = 0
    for source in sources:
        value = graph.const(source)
        if value is not None and set(source.users) == {node}:
            freed += value.nbytes
    return max(freed, SMALL_BYTES)


def _bytes(node: Node) -> int:
    value: Tensor = node.meta["val"]
    return value.numel() * value.element_size()


def _evaluate(graph: FoldGraph, node: Node) -> Tensor:
    def value(argument: Node) -> Any:
        return graph.const(argument)

    args = torch.fx.node.map_arg(node.args, value)
    kwargs = torch.fx.node.map_arg(node.kwargs, value)
    target: Any = node.target
    with torch.no_grad():
        result: Tensor = target(*args, **kwargs)
    return result

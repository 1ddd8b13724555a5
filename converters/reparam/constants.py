"""Whatever is computed from constants alone is computed once, here.

Attention biases gathered by a fixed index, layer scales viewed as (1, C, 1, 1), positional tables
that the model computes anew at every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, module_path

# A constant may not grow past this when it is computed ahead (an expand would copy it for nothing).
MAX_GROWTH_BYTES = 16 * 2**20


@rule("fold constants")
def fold_constants(graph: FoldGraph) -> int:
    """Replace every pure call on constants by its value. Random ops are left alone."""
    fired = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.users or node in graph.written:
            continue
        if any(graph.const(source) is None for source in node.all_input_nodes):
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.is_mutable:
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        value = _evaluate(graph, node)
        if not isinstance(value, Tensor) or value.nbytes > MAX_GROWTH_BYTES:
            continue
        constant = graph.add_const(value, node, module_path(node) or node.name)
        constant.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        graph.replace(node, constant)
        fired += 1
    return fired


def _evaluate(graph: FoldGraph, node: Node) -> Any:
    def value(argument: Node) -> Any:
        return graph.const(argument)

    args = torch.fx.node.map_arg(node.args, value)
    kwargs = torch.fx.node.map_arg(node.kwargs, value)
    target: Any = node.target
    with torch.no_grad():
        return target(*args, **kwargs)

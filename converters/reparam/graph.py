"""The exported graph as the rules see it: constants by node, edits that keep shapes known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from converters.reparam.storage import written_values

aten = torch.ops.aten


class FoldGraph:
    """A torch.export graph (ATen ops, weights as attributes) under edit.

    A rule never writes into a weight: it adds a new constant and points the op at it, so a weight
    that two ops share is safe.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self._serial = 0
        self._written: set[Node] | None = None

    @property
    def written(self) -> set[Node]:
        """Every node whose memory an in-place op writes into."""
        if self._written is None:
            self._written = written_values(self.graph)
        return self._written

    def forget_writes(self) -> None:
        """To be called where an in-place op is gone."""
        self._written = None

    def calls(self, *targets: Any) -> Iterator[Node]:
        """Every call of one of `targets`, in graph order; safe against edits on the way.

        Without those that touch a value which is written in place: they may not move.
        """
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node.target not in targets:
                continue
            if self.written.isdisjoint((node, *node.all_input_nodes)):
                yield node

    def const(self, node: object) -> Tensor | None:
        """The tensor behind a constant node, or None where the argument is no constant."""
        if not isinstance(node, Node) or node.op != "get_attr" or node in self.written:
            return None
        return self._attribute(node)

    def dtype_of(self, node: Node) -> torch.dtype | None:
        """The element type of the node's value, None where it is unknown or no tensor."""
        value = self._attribute(node) if node.op == "get_attr" else node.meta.get("val")
        return value.dtype if isinstance(value, Tensor) else None

    def _attribute(self, node: Node) -> Tensor | None:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None

    def add_const(self, value: Tensor, before: Node, hint: str) -> Node:
        """A new constant node in front of `before`; `hint` ends up in its name."""
        stem = "".join(c if c.isalnum() else "_" for c in hint).strip("_")
        while hasattr(self.module, name := f"{stem}_{self._serial}"):
            self._serial += 1
        self.module.register_buffer(name, value.detach().clone().contiguous())
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(name)
        node.meta["val"] = value
        return node

    def replace(self, old: Node, new: Node) -> None:
        """Every reader of `old` reads `new`; `old` goes."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def sweep(self) -> None:
        """Take away what nobody reads any more, nodes and tensors."""
        self.graph.eliminate_dead_code()
        self.forget_writes()
        live = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        for path, owner in self.module.named_modules():
            prefix = f"{path}." if path else ""
            for store in (owner._parameters, owner._buffers):
                for name in [n for n in store if f"{prefix}{n}" not in live]:
                    del store[name]
        self.graph.lint()
        self.module.recompile()


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The static shape that export recorded for the node's output."""
    value = node.meta.get("val")
    return tuple(int(s) for s in value.shape) if isinstance(value, Tensor) else None


def arg(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call by position or keyword."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def module_path(node: Node) -> str:
    """The dotted path of the torch module that the node came from ('' at the top)."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return str(list(stack.values())[-1][0])

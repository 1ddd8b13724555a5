"""The rules' table and the loop that applies them until none fits."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import GraphModule

from converters.errors import ConvertError
from converters.reparam.graph import FoldGraph

Rule = Callable[[FoldGraph], int]
RULES: dict[str, Rule] = {}

MAX_ROUNDS = 50


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule: a function that edits the graph and returns how often it fired."""

    def register(function: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"two reparameterization rules are called '{name}'")
        RULES[name] = function
        return function

    return register


def apply_rules(module: GraphModule) -> dict[str, int]:
    """Apply every registered rule, in registration order, until none fires.

    Edits `module` in place and returns rule name -> times fired (rules that never fired are left
    out). Raises ConvertError where the rules do not come to rest, which would be a fault of ours.
    """
    graph = FoldGraph(module)
    fired: dict[str, int] = {}
    for _ in range(MAX_ROUNDS):
        changes = 0
        for name, apply in RULES.items():
            count = apply(graph)
            if count:
                graph.sweep()
                fired[name] = fired.get(name, 0) + count
                changes += count
        if not changes:
            return fired
    raise ConvertError(f"the reparameterization rules did not come to rest in {MAX_ROUNDS} rounds")

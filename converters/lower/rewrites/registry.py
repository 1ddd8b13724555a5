"""The table of rewrites: which target needs each, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

from converters.reparam.graph import FoldGraph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Edit = Callable[[FoldGraph], int]


@dataclass(frozen=True)
class Rewrite:
    """An exact edit of the graph; `why` is the vendor's trait that asks for it."""

    name: str
    targets: tuple[str, ...]
    why: str
    edit: Edit


REWRITES: list[Rewrite] = []


def rewrite(name: str, targets: tuple[str, ...], why: str) -> Callable[[Edit], Edit]:
    """Register an edit that returns how often it fired."""

    def register(edit: Edit) -> Edit:
        REWRITES.append(Rewrite(name, targets, why, edit))
        return edit

    return register


def apply_rewrites(target: str, module: GraphModule) -> dict[str, int]:
    """Edit an exported module in place for `target`; rewrite name -> times fired."""
    graph = FoldGraph(module)
    fired = {r.name: r.edit(graph) for r in REWRITES if target in r.targets}
    graph.sweep()
    return {name: count for name, count in fired.items() if count}


def rewritten(target: str, program: ExportedProgram) -> tuple[ExportedProgram, dict[str, int]]:
    """The program in the form `target` asks for, and rewrite name -> times fired.

    It is the same object where no rewrite fits; it is never changed itself, others read it too.
    """
    if not any(target in r.targets for r in REWRITES):
        return program, {}
    module = program.module(check_guards=False)
    fired = apply_rewrites(target, module)
    if not fired:
        return program, {}
    return torch.export.export(module, tuple(program.example_inputs[0])), fired

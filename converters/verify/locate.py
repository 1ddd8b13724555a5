"""Find the first torch module at which an artefact leaves the torch reference.

Engines do not give their intermediate values, but any prefix of the graph is a model too: the
graph is cut at a node, lowered to the same target, run on the same engine and compared. Divergence
once there stays, so a binary search over the nodes needs about seven cuts.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from converters.lower.base import Job, lower_to
from converters.reparam.graph import module_path, shape_of
from runtime.inputs import to_input
from runtime.sessions import open_session
from runtime.sessions.base import Array

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Largest error over the spread at a cut: looser than the gates of the whole, since a single
# channel's spread between the inputs may be small.
TOLERANCE = {"fp32": 1e-3}
TOLERANCE_COARSE = 0.3
INPUTS = 4
OPERATOR_CALLS = "call_function"


def locate_divergence(
    target: str, program: ExportedProgram, job: Job, inputs_NHWC: Array
) -> str:
    """'module (op)' of the first node whose value on the engine differs from torch's.

    Says so in words where every cut agrees, or where a cut does not convert or run.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    nodes = _cuts(module)
    inputs = inputs_NHWC[:INPUTS]
    tolerance = TOLERANCE.get(job.precision, TOLERANCE_COARSE)

    def diverges(index: int) -> bool:
        return _error_at(target, module, nodes[index], job, inputs) > tolerance

    try:
        found = first_true(len(nodes), diverges)
    except Exception as error:
        return f"not found: a part of the graph does not convert by itself ({error})"[:500]
    if found is None:
        return "not found: every part of the graph agrees by itself"
    path = module_path(nodes[found]).removeprefix("model").lstrip(".") or "(top level)"
    return f"{path} ({nodes[found].target})"


def first_true(count: int, test: Callable[[int], bool]) -> int | None:
    """The smallest index in 0..count-1 that passes a test which stays true once true, or None."""
    if count == 0 or not test(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if test(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _cuts(module: GraphModule) -> list[Node]:
    """The nodes worth cutting at, in graph order: float tensors that depend on the input."""
    alive: set[Node] = {n for n in module.graph.nodes if n.op == "placeholder"}
    cuts = []
    for node in module.graph.nodes:
        if node.op != OPERATOR_CALLS or not any(s in alive for s in node.all_input_nodes):
            continue
        alive.add(node)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and len(shape_of(node) or ()) > 1:
            cuts.append(node)
    return cuts


def _error_at(target: str, module: GraphModule, cut: Node, job: Job, inputs: Array) -> float:
    """Largest error over the spread of the value at `cut`; infinite where it is not finite."""
    part = _prefix(module, cut)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        expected = torch.cat([part(x[None]) for x in x_BCHW]).numpy()
        exported = torch.export.export(part, (x_BCHW[:1],))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / job.file.name
        lower_to(target, exported, replace(job, file=file))
        session = open_session(file, threads=1)
        try:
            got = np.concatenate([session.run(to_input(x, session.input)) for x in inputs])
        finally:
            session.close()
        shutil.rmtree(file, ignore_errors=True)
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    spread = float(np.ptp(expected, axis=0).max())
    return float(np.abs(got - expected).max()) / max(spread, 1e-30)


def _prefix(module: GraphModule, cut: Node) -> GraphModule:
    """The graph up to `cut`, flattened to (1, n) so that no engine's layout comes between."""
    part = copy.deepcopy(module)
    names = {n.name: n for n in part.graph.nodes}
    end = names[cut.name]
    output = next(n for n in part.graph.nodes if n.op == "output")
    with part.graph.inserting_before(output):
        flat = part.graph.call_function(torch.ops.aten.flatten.using_ints, (end, 1))
    output.args = ((flat,),)
    for node in list(part.graph.nodes):
        if node.op == "call_module" and not node.users:
            part.graph.erase_node(node)  # torch.export's guards
    part.graph.eliminate_dead_code()
    part.graph.set_codegen(torch.fx.graph.CodeGen())
    output.args = (flat,)
    part.recompile()
    return part

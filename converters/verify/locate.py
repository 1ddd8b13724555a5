"""Find the first torch module at which an artefact leaves the torch reference.

Engines do not give their intermediate values, but the graph up to any node is a model too: it is
cut there, lowered to the same target, run on the same engine and compared. A cut shows every value
that the rest of the graph still reads, so a difference in one branch does not vanish from the cuts
through the other. Divergence once there stays, and a binary search needs about seven cuts.
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


def locate_divergence(target: str, program: ExportedProgram, job: Job, inputs_NHWC: Array) -> str:
    """'module (op)' of the first node whose value on the engine differs from torch's.

    Says so in words where every cut agrees, or where a cut does not convert or run.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    cuts = _cuts(module)
    inputs = inputs_NHWC[:INPUTS]
    tolerance = TOLERANCE.get(job.precision, TOLERANCE_COARSE)

    def diverges(index: int) -> bool:
        return _error_at(target, module, cuts[index], job, inputs) > tolerance

    try:
        found = first_true(len(cuts), diverges)
    except Exception as error:
        return f"not found: a part of the graph does not convert by itself ({error})"[:500]
    if found is None:
        return "not found: every part of the graph agrees by itself"
    node = cuts[found][-1]
    path = module_path(node).removeprefix("model").lstrip(".") or "(top level)"
    return f"{path} ({node.target})"


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


def _cuts(module: GraphModule) -> list[list[Node]]:
    """For each float node that depends on the input, in graph order: what is still read after it.

    The node itself comes last. Its own cut differs from the one before in nothing else new.
    """
    order = list(module.graph.nodes)
    place = {node: index for index, node in enumerate(order)}
    alive: list[Node] = []
    depends = {node for node in order if node.op == "placeholder"}
    cuts = []
    for node in order:
        if node.op != OPERATOR_CALLS or depends.isdisjoint(node.all_input_nodes):
            continue
        depends.add(node)
        if not _is_float_tensor(node):  # for a tuple of parts (split) its input stands in the cuts
            continue
        alive = [n for n in alive if _last_reader(n, place) > place[node]]
        cuts.append([*alive, node])
        alive.append(node)
    return cuts


def _last_reader(node: Node, place: dict[Node, int]) -> int:
    """Where in the graph the node is read last, through tuples of its parts."""
    last = -1
    for user in node.users:
        is_tuple = user.op == OPERATOR_CALLS and isinstance(user.meta.get("val"), tuple | list)
        last = max(last, _last_reader(user, place) if is_tuple else place[user])
    return last


def _is_float_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1


def _error_at(target: str, module: GraphModule, cut: list[Node], job: Job, inputs: Array) -> float:
    """Largest error over the spread, of the values of a cut; infinite where one is not finite."""
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
    if got.shape != expected.shape:
        return float("inf")
    sizes = [int(np.prod(shape_of(node) or ())) for node in cut]
    ends = np.cumsum(sizes)[:-1]
    parts = zip(np.split(got, ends, axis=1), np.split(expected, ends, axis=1), strict=True)
    return max(_error_over_spread(*part) for part in parts)


def _error_over_spread(got: Array, expected: Array) -> float:
    """Over the spread between inputs, or a hundredth of the size of a value without spread."""
    with np.errstate(invalid="ignore"):
        error = float(np.where(got == expected, 0, np.abs(got - expected)).max())
    finite = np.where(np.isfinite(expected), expected, 0)
    scale = max(float(np.ptp(finite, axis=0).max()), 0.01 * float(np.abs(finite).max()), 1e-30)
    return error / scale if np.isfinite(error) else float("inf")


def _prefix(module: GraphModule, cut: list[Node]) -> GraphModule:
    """The graph up to `cut`, its values as one (1, n), which every engine lays out alike."""
    part = copy.deepcopy(module)
    names = {n.name: n for n in part.graph.nodes}
    output = next(n for n in part.graph.nodes if n.op == "output")
    with part.graph.inserting_before(output):
        flat = [
            part.graph.call_function(torch.ops.aten.reshape.default, (names[node.name], [1, -1]))
            for node in cut
        ]
        whole = flat[0]
        if len(flat) > 1:
            whole = part.graph.call_function(torch.ops.aten.cat.default, (flat, 1))
    output.args = (whole,)
    for node in list(part.graph.nodes):
        if node.op == "call_module" and not node.users:
            part.graph.erase_node(node)  # torch.export's guards
    part.graph.eliminate_dead_code()
    part.graph.set_codegen(torch.fx.graph.CodeGen())
    part.recompile()
    return part

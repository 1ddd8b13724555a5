"""Reparameterize with proof: what fired, what it saved, and by how much the function moved."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from converters.errors import ProofFailed
from converters.reparam.engine import apply_rules
from runtime.manifest import ReparamProof

GATE_FLOAT64 = 1e-10
GATE_FLOAT32 = 1e-5

# Two float32 runs of one function differ by what float32 costs that function. Where that is more
# than the gate, the gate follows it this many times, up to what a float32 artefact may differ by.
OWN_ERROR_FACTOR = 4
GATE_FLOAT32_MOST = 1e-4


@dataclass
class Reparameterized:
    """The folded graph in float32, its proof, and the outputs before and after.

    outputs and folded_outputs are (N, classes) float32, for the inputs the proof was made on.
    """

    module: GraphModule
    proof: ReparamProof
    outputs: Tensor
    folded_outputs: Tensor


def reparameterize(module: GraphModule, inputs: Tensor) -> Reparameterized:
    """Fold an exported graph by every rule that fits, and prove that the function is the same.

    `module` is `torch.export.export(...).module()`, not changed here. `inputs` are (N, ...) with
    N >= 2 different inputs; the graph runs them one by one. All folding is done in float64 and
    rounded to float32 once. The differences are over the spread of the outputs between inputs.
    Raises ProofFailed where a gate is not held.
    """
    with torch.no_grad():
        before32, macs_before = _run_counted(module, inputs)
        folded = cast_graph(copy.deepcopy(module), torch.float64)
        inputs64 = inputs.double() if inputs.is_floating_point() else inputs
        before64 = _run(folded, inputs64)
        params_before, nodes_before = _parameters(module), _calls(module)
        fired = apply_rules(folded)
        after64 = _run(folded, inputs64)
        folded = cast_graph(folded, torch.float32)
        after32, macs_after = _run_counted(folded, inputs)
    spread = float((before64.amax(0) - before64.amin(0)).max())
    own_float32 = _relative(before32.double(), before64, spread)
    gate_float32 = min(max(GATE_FLOAT32, OWN_ERROR_FACTOR * own_float32), GATE_FLOAT32_MOST)
    proof = ReparamProof(
        rules=fired,
        params_before=params_before,
        params_after=_parameters(folded) + _float_buffers(folded),
        macs_before=macs_before,
        macs_after=macs_after,
        nodes_before=nodes_before,
        nodes_after=_calls(folded),
        max_rel_float64=_relative(after64, before64, spread),
        max_rel_float32=_relative(after32.double(), before32.double(), spread),
        gate_float64=GATE_FLOAT64,
        gate_float32=gate_float32,
        inputs=int(inputs.shape[0]),
    )
    if spread == 0 or not torch.isfinite(before64).all():
        raise ProofFailed(
            "the torch model gives the same output for every input, or a value that is not finite; "
            "nothing can be proven about it. Are the weights loaded?"
        )
    # Both written so that NaN fails.
    if not own_float32 <= GATE_FLOAT32_MOST:
        raise ProofFailed(
            "float32 is too coarse for this model: torch's own float32 outputs are off its float64 "
            f"outputs by {own_float32:.1e} of their spread (at most {GATE_FLOAT32_MOST:.0e}), so "
            "no artefact can follow them. Are the weights trained?"
        )
    if not (proof.max_rel_float64 <= GATE_FLOAT64 and proof.max_rel_float32 <= gate_float32):
        raise ProofFailed(
            "reparameterization changed the function: largest difference over the spread "
            f"{proof.max_rel_float64:.1e} in float64 (gate {GATE_FLOAT64:.0e}), "
            f"{proof.max_rel_float32:.1e} in float32 (gate {gate_float32:.0e})"
        )
    return Reparameterized(folded, proof, before32, after32)


def cast_graph(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """Weights and explicit float casts of an exported graph in another float type, in place."""
    floats = {torch.float32, torch.float64}

    def swap(value: Any) -> Any:
        return dtype if isinstance(value, torch.dtype) and value in floats else value

    module.to(dtype)
    for part in module.modules():  # an autocast block or a branch is a graph inside the graph
        if not isinstance(part, GraphModule):
            continue
        for node in part.graph.nodes:
            if node.op == "call_function":
                node.args = tuple(swap(a) for a in node.args)
                node.kwargs = {k: swap(v) for k, v in node.kwargs.items()}
                if _makes_default_float(node):
                    node.kwargs = {**node.kwargs, "dtype": dtype}
            if isinstance(node.meta.get("val"), Tensor):
                node.meta["val"] = _cast_float(node.meta["val"], dtype)
        part.recompile()
    return module


def _makes_default_float(node: Node) -> bool:
    """Whether the op makes a tensor from nothing (zeros) in torch's default float type."""
    value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
    if node.all_input_nodes or schema is None or not isinstance(value, Tensor):
        return False
    takes_type = any(argument.name == "dtype" for argument in schema.arguments)
    return takes_type and value.is_floating_point() and node.kwargs.get("dtype") is None


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (N, classes); one by one, since the graph's batch is static.

    Each run gets a copy, since a model may write into its input.
    """
    return torch.cat([module(x[None].clone()) for x in inputs])


def _run_counted(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Outputs (N, classes), and one run's multiply-accumulates in convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        first = _run(module, inputs[:1])
    return torch.cat([first, _run(module, inputs[1:])]), int(counter.get_total_flops()) // 2


def _relative(after: Tensor, before: Tensor, spread: float) -> float:
    return float((after - before).abs().max()) / spread if spread else float("nan")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _float_buffers(module: nn.Module) -> int:
    """What folding makes of parameters and statistics; a tensor that two ops share counts once."""
    return sum(b.numel() for b in module.buffers() if b.is_floating_point())


def _calls(module: GraphModule) -> int:
    return sum(n.op == "call_function" for n in module.graph.nodes)


def _cast_float(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value

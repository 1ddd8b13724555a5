"""What `edgevit inspect` tells: layers, costs, what folding will do, what targets will not take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from converters.chatter import chatter_to
from converters.export import export_source
from converters.lower.limits import forecast
from converters.pictures import proof_pictures
from converters.reparam import reparameterize
from converters.source import load_source
from runtime.manifest import ReparamProof


@dataclass(frozen=True)
class Layer:
    """A module of the first levels: its parameters, and the MACs of one run (batch 1)."""

    name: str
    kind: str
    params: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """Counts are of graph nodes; `limits` maps target -> 'op: why' -> nodes."""

    ref: str
    input_shape: tuple[int, ...]
    classes: int
    trained: bool
    layers: list[Layer]
    proof: ReparamProof
    ops_before: dict[str, int]
    ops_after: dict[str, int]
    limits: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()


def inspect_model(model: str | nn.Module, size: int | None = None) -> Inspection:
    """Export and fold a model without converting it. size is in pixels.

    Raises ConvertError, ModelError.
    """
    with chatter_to(None):
        return _inspect(model, size)


def _inspect(model: str | nn.Module, size: int | None) -> Inspection:
    source = load_source(model, size=size)
    pre = source.preprocessing
    graph = export_source(source)
    inputs = torch.from_numpy(proof_pictures(pre.height, pre.width)[:3]).permute(0, 3, 1, 2)
    folded = reparameterize(graph, inputs.contiguous())
    return Inspection(
        ref=source.ref,
        input_shape=(1, 3, pre.height, pre.width),
        classes=source.num_classes,
        trained=source.trained,
        layers=_layers(source.module, inputs[:1]),
        proof=folded.proof,
        ops_before=_ops(graph),
        ops_after=_ops(folded.module),
        limits=forecast(folded.module),
        notes=source.notes,
    )


def _layers(module: nn.Module, example: torch.Tensor) -> list[Layer]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    root = type(module).__name__
    flops = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    layers = []
    for name, child in _shallow(module):
        params = sum(p.numel() for p in child.parameters())
        macs = flops.get(f"{root}.{name}", 0) // 2
        if params or macs:
            layers.append(Layer(name, type(child).__name__, params, macs))
    return layers


def _shallow(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children, and the children of lists and sequences of stages."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and name == "stages":
            found += [(f"{name}.{inner}", stage) for inner, stage in child.named_children()]
        else:
            found.append((name, child))
    return found


def _ops(graph: torch.fx.GraphModule) -> dict[str, int]:
    names = Counter(
        str(n.target).removeprefix("aten.").rsplit(".", 1)[0]
        for n in graph.graph.nodes
        if n.op == "call_function" and "getitem" not in str(n.target)
    )
    return dict(names.most_common())

"""Ops that an engine's fast path does not take as they are: known before converting.

Seen in the engines' own delegation reports on the reference machine with the pinned versions
(docs/results/zoo.md). A forecast for `edgevit inspect`; `convert` measures.
"""

from __future__ import annotations

from collections import Counter

from torch.fx import GraphModule, Node

from converters.reparam.graph import arg, aten, shape_of

SPATIAL = {2, 3}

BICUBIC = [("coreml", "upsample_bicubic2d: coremltools 9.0 does not convert it")]
ALWAYS: dict[object, list[tuple[str, str]]] = {
    aten.group_norm.default: [
        ("executorch", "group_norm: outside XNNPACK"),
        ("coreml", "group_norm: becomes rank-5 ops, slow on the Neural Engine"),
    ],
    aten.layer_norm.default: [("executorch", "layer_norm: outside XNNPACK")],
    aten.upsample_bicubic2d.vec: BICUBIC,
    aten.upsample_bicubic2d.default: BICUBIC,
}


def forecast(module: GraphModule) -> dict[str, dict[str, int]]:
    """Target -> what it will not take whole ('op: why') -> how many such nodes the graph has."""
    found: dict[str, Counter[str]] = {
        t: Counter() for t in ("coreml", "tflite", "executorch", "onnx")
    }
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        for target, why in _limits(node):
            found[target][why] += 1
    return {target: dict(counts) for target, counts in found.items()}


def _limits(node: Node) -> list[tuple[str, str]]:
    if node.target in ALWAYS:
        return ALWAYS[node.target]
    if node.target is aten.matmul.default and len(shape_of(node) or ()) > 3:
        return [("executorch", "matmul above rank 3: expand copies outside XNNPACK")]
    if node.target is aten.mean.dim and isinstance(source := node.args[0], Node):
        rank = len(shape_of(source) or ())
        if {d % rank for d in arg(node, 1, "dim")} != SPATIAL:
            return [("executorch", "mean over other dimensions than H, W: outside XNNPACK")]
    return []

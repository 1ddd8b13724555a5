"""Ops that an engine's fast path does not take as they are: known before converting.

Seen in the engines' own delegation reports on the reference machine with the pinned versions
(docs/results/zoo.md). A forecast for `edgevit inspect`; `convert` measures.
"""

from __future__ import annotations

from collections import Counter

from torch.fx import GraphModule, Node

from converters.reparam.graph import arg, aten, shape_of

SPATIAL = {2, 3}


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
    match node.target:
        case aten.group_norm.default:
            return [
                ("executorch", "group_norm: outside XNNPACK"),
                ("coreml", "group_norm: becomes rank-5 ops, slow on the Neural Engine"),
            ]
        case aten.layer_norm.default:
            return [("executorch", "layer_norm: outside XNNPACK")]
        case aten.split_with_sizes.default | aten.split.Tensor | aten.chunk.default:
            return [("executorch", "split: outside XNNPACK, a copy each")]
        case aten.matmul.default if len(shape_of(node) or ()) > 3:
            return [("executorch", "matmul above rank 3: expand copies outside XNNPACK")]
        case aten.mean.dim:
            rank = len(shape_of(node.args[0]) or ()) if isinstance(node.args[0], Node) else 0
            dims = {d % rank for d in arg(node, 1, "dim")} if rank else set()
            if dims != SPATIAL:
                return [("executorch", "mean over other dimensions than H, W: outside XNNPACK")]
        case aten.upsample_bicubic2d.vec | aten.upsample_bicubic2d.default:
            return [("coreml", "upsample_bicubic2d: coremltools 9.0 does not convert it")]
    return []

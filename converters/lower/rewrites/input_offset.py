"""The mean that is subtracted from a picture, as a constant one row wide."""

from __future__ import annotations

from converters.lower.rewrites.registry import rewrite
from converters.reparam.graph import FoldGraph, aten, shape_of

MAX_CHANNELS = 4


@rewrite(
    "input offset one row wide",
    targets=("tflite",),
    why="XNNPACK's broadcast runs over the innermost numbers that both sides share: the 3 channels "
    "of one pixel for a (1, 3, 1, 1) constant in NHWC, a whole row for (1, 3, 1, W). Both "
    "are timed in docs/results/input_offset.md",
)
def widen_offset(graph: FoldGraph) -> int:
    """x - c with x (1, C, H, W), C at most 4, c (1, C, 1, 1): c is repeated along W."""
    fired = 0
    for node in graph.calls(aten.sub.Tensor, aten.add.Tensor):
        offset, shape = graph.const(node.args[1]), shape_of(node)
        if offset is None or shape is None or len(shape) != 4 or shape[1] > MAX_CHANNELS:
            continue
        if tuple(offset.shape) != (1, shape[1], 1, 1) or shape[3] == 1:
            continue
        row = graph.add_const(offset.expand(1, shape[1], 1, shape[3]), node, "input_offset")
        node.replace_input_with(node.args[1], row)  # type: ignore[arg-type]  # const() saw a node
        fired += 1
    return fired

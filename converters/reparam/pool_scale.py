"""The scale of a pool mixer, g * (pool(x) - x), as a 1x1 depthwise convolution.

EfficientFormer's pool mixer has no weights that could take its layer scale. Merging pool, scale and
residual into one 3x3 depthwise convolution is not exact: the pool divides by the number of pixels
inside the picture, which differs at the border. Forms that correct the border by a constant map are
exact and slower (docs/results/pool_mixer.md); this one stays closest to the multiply,
and leaves a convolution that later passes (int8, branch merging) know.
"""

from __future__ import annotations

from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, aten, module_path, shape_of
from converters.reparam.scales import MULS, scaled_value


@rule("pool-mixer scale into a depthwise convolution")
def fold_pool_scale(graph: FoldGraph) -> int:
    """g * (avg_pool2d(x) - x) with g of shape (1, C, 1, 1)."""
    fired = 0
    for node in graph.calls(*MULS):
        scaled = scaled_value(graph, node)
        shape = shape_of(node)
        if scaled is None or shape is None or len(shape) != 4 or not _is_pool_minus_x(scaled[0]):
            continue
        value, factor = scaled
        if factor.numel() != shape[1] or tuple(factor.shape[-3:]) != (shape[1], 1, 1):
            continue
        hint = module_path(node) or "pool_scale"
        weight = graph.add_const(factor.reshape(shape[1], 1, 1, 1), node, f"{hint}_weight")
        with graph.graph.inserting_before(node):
            conv = graph.graph.call_function(
                aten.conv2d.default, (value, weight, None, [1, 1], [0, 0], [1, 1], shape[1])
            )
        conv.meta.update(node.meta)
        graph.replace(node, conv)
        fired += 1
    return fired


def _is_pool_minus_x(node: Node) -> bool:
    if node.op != "call_function" or node.target is not aten.sub.Tensor:
        return False
    pool, x = node.args[0], node.args[1]
    return (
        isinstance(pool, Node)
        and pool.op == "call_function"
        and pool.target is aten.avg_pool2d.default
        and pool.args[0] is x
    )

"""A softmax over the last of four dimensions, on three."""

from __future__ import annotations

from torch.fx import Node

from converters.lower.rewrites.registry import rewrite
from converters.reparam.graph import FoldGraph, arg, aten, shape_of

LAST = (-1, 3)
ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
}
RESHAPES = {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.unflatten.int,
    aten.unsqueeze.default,
}


@rewrite(
    "softmax on three dimensions",
    targets=("executorch",),
    why="ExecuTorch 1.4.1 keeps what follows a convolution, a pooling or a mean in channels-last "
    "order inside the XNNPACK delegate until something asks for the plain one. Its softmax asks "
    "for nothing and runs over whatever dimension is innermost: over the channels in place of the "
    "last dimension, without an error. Talking heads (convolution, softmax, convolution) answer "
    "wrongly, EfficientFormerV2 with them (docs/results/rewrites.md). A value of rank 3 has no "
    "channels-last order",
)
def flatten_softmax(graph: FoldGraph) -> int:
    """softmax(x, -1) of x (A, B, C, D) on (A * B, C, D), wherever x may be channels-last."""
    fired = 0
    for node in graph.calls(aten.softmax.int, aten._softmax.default):
        source, shape = node.args[0], shape_of(node)
        if shape is None or len(shape) != 4 or arg(node, 1, "dim") not in LAST:
            continue
        if not isinstance(source, Node) or _is_plain(source):
            continue
        flat_shape = [shape[0] * shape[1], *shape[2:]]
        with graph.graph.inserting_before(node):
            flat = graph.graph.call_function(aten.reshape.default, (source, flat_shape))
        flat.meta = {**source.meta, "val": source.meta["val"].reshape(flat_shape)}
        with graph.graph.inserting_after(node):
            back = graph.graph.call_function(aten.reshape.default, (node, list(shape)))
        back.meta = dict(node.meta)
        for user in [user for user in node.users if user is not back]:
            user.replace_input_with(node, back)
        node.args = (flat, -1, *node.args[2:])
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "dim"}
        node.meta = {**node.meta, "val": node.meta["val"].reshape(flat_shape)}
        fired += 1
    return fired


def _is_plain(node: Node) -> bool:
    """Whether the value is sure to be in plain order: reshapes ask for it, arithmetic keeps it.

    A path of arithmetic alone back to constants, values of another rank and reshapes.
    """
    shape = shape_of(node)
    if node.op == "get_attr" or node.target in RESHAPES or (shape is not None and len(shape) != 4):
        return True
    return node.target in ELEMENTWISE and all(map(_is_plain, node.all_input_nodes))

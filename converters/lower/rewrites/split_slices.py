"""A split as the slices that it is."""

from __future__ import annotations

import operator
from itertools import accumulate

from torch.fx import Node

from converters.lower.rewrites.registry import rewrite
from converters.reparam.graph import FoldGraph, arg, aten, shape_of


@rewrite(
    "split as slices",
    targets=("executorch",),
    why="XNNPACK's delegate takes a slice and no split: each split ends a delegate call and copies "
    "its pieces outside (docs/results/rewrites.md counts the calls)",
)
def slice_splits(graph: FoldGraph) -> int:
    """The pieces of split, split_with_sizes and chunk, each cut from the whole by itself."""
    fired = 0
    for node in graph.calls(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        source, pieces = node.args[0], list(node.users)
        shape = shape_of(source) if isinstance(source, Node) else None
        if shape is None or any(piece.target is not operator.getitem for piece in pieces):
            continue
        # Counted from the front: XNNPACK's channels-last slice mistakes a negative dimension.
        dim = arg(node, 2, "dim", 0) % len(shape)
        widths = [int(value.shape[dim]) for value in node.meta["val"]]
        ends = list(accumulate(widths))
        for piece in pieces:
            index = piece.args[1]
            assert isinstance(index, int)
            start, end = ends[index] - widths[index], ends[index]
            with graph.graph.inserting_before(piece):
                part = graph.graph.call_function(aten.slice.Tensor, (source, dim, start, end))
            part.meta = dict(piece.meta)
            graph.replace(piece, part)
        fired += 1
    return fired

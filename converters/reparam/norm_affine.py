"""LayerNorm's and GroupNorm's gamma and beta go into the linear maps that read the norm.

W' = W diag(gamma), b' = b + W beta; the norm keeps only its standardisation.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.flow import linear_readers
from converters.reparam.graph import FoldGraph, arg, aten, shape_of

LAYER_NORM = aten.layer_norm.default
GROUP_NORM = aten.group_norm.default


@rule("norm affine into the linear maps after it")
def fold_norm_affine(graph: FoldGraph) -> int:
    """LayerNorm over the last dimension, GroupNorm over dimension 1, read by linear maps only."""
    fired = 0
    for norm in graph.calls(LAYER_NORM, GROUP_NORM):
        dim = _channel_dim(norm)
        gamma_node, beta_node = arg(norm, 2, "weight"), arg(norm, 3, "bias")
        gamma, beta = graph.const(gamma_node), graph.const(beta_node)
        if dim is None or gamma is None or (beta_node is not None and beta is None):
            continue
        readers = linear_readers(graph, norm, dim)
        if readers is None or not all(r.can_absorb_input(beta) for r in readers):
            continue
        for reader in readers:
            reader.absorb_input(gamma, beta if beta is not None else torch.zeros_like(gamma))
        args = list(norm.args)
        args[2:4] = [None, None]
        norm.args = tuple(args)
        norm.kwargs = {k: v for k, v in norm.kwargs.items() if k not in ("weight", "bias")}
        fired += 1
    return fired


def _channel_dim(norm: Node) -> int | None:
    shape = shape_of(norm)
    if shape is None:
        return None
    if norm.target is GROUP_NORM:
        return 1
    normalized = arg(norm, 1, "normalized_shape")
    return len(shape) - 1 if len(normalized) == 1 else None

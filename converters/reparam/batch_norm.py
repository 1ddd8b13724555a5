"""BatchNorm in evaluation is y = s x + t per channel; it belongs to a linear map beside it.

With s = gamma / sqrt(var + eps) and t = beta - mean s:
after a map, W' = s W and b' = s b + t; before one, W' = W s and b' = b + W t.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.engine import rule
from converters.reparam.flow import linear_readers, scale_rows
from converters.reparam.graph import FoldGraph, arg, aten, shape_of
from converters.reparam.linear_map import as_linear_map, output_channel_dim

BATCH_NORM = aten.batch_norm.default


def scale_and_shift(graph: FoldGraph, node: Node) -> tuple[Tensor, Tensor] | None:
    """s and t, both (C,), or None where the norm trains, keeps no statistics or is not constant."""
    if bool(arg(node, 5, "training", True)):
        return None
    mean, var = graph.const(arg(node, 3, "running_mean")), graph.const(arg(node, 4, "running_var"))
    if mean is None or var is None:
        return None
    gamma_node, beta_node = arg(node, 1, "weight"), arg(node, 2, "bias")
    gamma, beta = graph.const(gamma_node), graph.const(beta_node)
    if (gamma_node is not None and gamma is None) or (beta_node is not None and beta is None):
        return None
    scale = torch.rsqrt(var + float(arg(node, 7, "eps", 1e-5)))
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


@rule("batch norm into the linear map before it")
def fold_into_previous(graph: FoldGraph) -> int:
    """Linear map, read by nobody else, then batch norm over its output channels.

    Also with moves between that keep each channel's values together (LeViT's flattened tokens).
    """
    fired = 0
    for norm in graph.calls(BATCH_NORM):
        affine, value, shape = scale_and_shift(graph, norm), norm.args[0], shape_of(norm)
        if affine is None or shape is None or not isinstance(value, Node):
            continue
        linear = as_linear_map(graph, value)
        if linear is not None and output_channel_dim(value, linear) == 1:
            if len(value.users) != 1:
                continue
            linear.scale_output(*affine)
        else:  # batch norm always works on dimension 1
            along = [-1 if d == 1 else 1 for d in range(len(shape))]
            if not scale_rows(graph, value, norm, *(part.reshape(along) for part in affine)):
                continue
        graph.replace(norm, value)
        fired += 1
    return fired


@rule("batch norm into the linear maps after it")
def fold_into_next(graph: FoldGraph) -> int:
    """Batch norm whose every reader is a linear map (through means and moves).

    Not where zeros are padded behind the norm: a shift would have to be padded instead.
    """
    fired = 0
    for norm in graph.calls(BATCH_NORM):
        affine = scale_and_shift(graph, norm)
        shape = shape_of(norm)
        if affine is None or shape is None:
            continue
        readers = linear_readers(graph, norm, 1)
        if readers is None or not all(r.can_absorb_input(affine[1]) for r in readers):
            continue
        for reader in readers:
            reader.absorb_input(*affine)
        graph.replace(norm, norm.args[0])  # type: ignore[arg-type]  # an exported graph reads nodes
        fired += 1
    return fired

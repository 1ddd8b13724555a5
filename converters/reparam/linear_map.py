"""Convolutions and linear layers as one thing: y = W x + b over a channel dimension.

Shapes: a convolution's weight is (out, in/groups, *kernel), a linear layer's (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from converters.reparam.graph import FoldGraph, arg, aten, module_path, shape_of

CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CONVS_NAMED_PADDING = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
LINEAR_MAPS = (*CONVS, *CONVS_NAMED_PADDING, aten.linear.default)


@dataclass
class LinearMap:
    """One linear op with constant weights, and the edits that are exact on it."""

    graph: FoldGraph
    node: Node
    weight: Tensor
    bias: Tensor | None
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return self.node.target is not aten.linear.default

    @property
    def source(self) -> Node:
        source = self.node.args[0]
        assert isinstance(source, Node)
        return source

    @property
    def padded(self) -> bool:
        """Whether zeros from outside the picture enter the sums."""
        if isinstance(self.padding, str):
            return self.padding != "valid" and any(k > 1 for k in self.weight.shape[2:])
        return any(p != 0 for p in self.padding)

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    def channel_dim(self, rank: int) -> int:
        """The dimension that W contracts (and writes) in a tensor of this rank."""
        return rank - self.kernel_rank - 1 if self.is_conv else rank - 1

    @property
    def kernel_rank(self) -> int:
        """2 for a 2-D convolution, 0 for a linear layer."""
        return self.weight.dim() - 2

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Point the op at new weights."""
        hint = module_path(self.node) or "folded"
        args = list(self.node.args)
        while len(args) < 3:
            args.append(None)
        args[1] = self.graph.add_const(weight, self.node, f"{hint}_weight")
        args[2] = None if bias is None else self.graph.add_const(bias, self.node, f"{hint}_bias")
        self.node.args = tuple(args)
        self.node.kwargs = {
            k: v for k, v in self.node.kwargs.items() if k not in ("weight", "bias")
        }
        self.weight, self.bias = weight, bias

    def scale_output(self, scale: Tensor, shift: Tensor | None) -> None:
        """Become scale * y + shift, both (out,)."""
        weight = self.weight * scale.reshape(-1, *[1] * (self.weight.dim() - 1))
        bias = None if self.bias is None else self.bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        self.write(weight, bias)

    def can_absorb_input(self, shift: Tensor | None) -> bool:
        """Whether W (scale * x + shift) + b is again a linear map of this form.

        Zero padding is inserted after the affine, so a shift is exact only where none enters.
        """
        return shift is None or not self.padded or bool((shift == 0).all())

    def absorb_input(self, scale: Tensor, shift: Tensor | None) -> None:
        """Become W (scale * x + shift) + b; scale and shift are (in,)."""
        out, per_group = int(self.weight.shape[0]), int(self.weight.shape[1])
        tail = [1] * self.kernel_rank
        group_of_out = torch.arange(out) // (out // self.groups)
        columns = group_of_out[:, None] * per_group + torch.arange(per_group)[None, :]
        weight = self.weight * scale[columns].reshape(out, per_group, *tail)
        bias = self.bias
        if shift is not None and not bool((shift == 0).all()):
            moved = (self.weight * shift[columns].reshape(out, per_group, *tail)).flatten(1).sum(1)
            bias = moved if bias is None else bias + moved
        self.write(weight, bias)


def as_linear_map(graph: FoldGraph, node: object) -> LinearMap | None:
    """See a node as a linear map, or None where it is none or its weights are not constant."""
    if not isinstance(node, Node) or node.op != "call_function" or node.target not in LINEAR_MAPS:
        return None
    weight = graph.const(arg(node, 1, "weight"))
    bias_node = arg(node, 2, "bias")
    bias = graph.const(bias_node)
    if weight is None or (bias_node is not None and bias is None):
        return None
    if node.target is aten.linear.default:
        if weight.dim() != 2:  # a vector is allowed, and takes the channel dimension away
            return None
        return LinearMap(graph, node, weight, bias, 1, (), (), ())
    rank = weight.dim() - 2
    padding = arg(node, 4, "padding", 0)
    if not isinstance(padding, str):
        padding = _per_dim(padding, rank)
    return LinearMap(
        graph,
        node,
        weight,
        bias,
        int(arg(node, 6, "groups", 1)),
        _per_dim(arg(node, 3, "stride", 1), rank),
        padding,
        _per_dim(arg(node, 5, "dilation", 1), rank),
    )


def output_channel_dim(node: Node, linear: LinearMap) -> int | None:
    """The channel dimension of the map's output, None where its shape is unknown."""
    shape = shape_of(node)
    return None if shape is None else linear.channel_dim(len(shape))


def _per_dim(value: int | list[int] | tuple[int, ...], rank: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))

"""Gates on a ViT, by hooks: a factor on every residual channel, head and FFN unit.

At 1 they change nothing. A gate of 0 is the channel, head or unit sliced away, exactly, and in
between the function is smooth, so that gradients by the gates mean something.
"""

# Shapes: B batch, C residual channels, D blocks, M heads, K head width, F FFN units, N tokens.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.models.vit import VisionTransformer
from partition.cutting.geometry import Geometry, blocks_of


@dataclass(frozen=True)
class Gates:
    """One set of gates for every picture of a batch, so that one backward scores each apart.

    residual (B, C), heads (B, D, M), ffn (B, D, F).
    """

    residual: Tensor
    heads: Tensor
    ffn: Tensor

    @classmethod
    def open(cls, geometry: Geometry, batch: int, like: Tensor) -> Gates:
        """All gates at 1, on the device and in the dtype of `like`."""
        g = geometry
        return cls(
            like.new_ones(batch, g.embed_dim),
            like.new_ones(batch, g.depth, g.heads),
            like.new_ones(batch, g.depth, g.mlp_dim),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, heads, FFN."""
        return self.residual, self.heads, self.ffn


@contextmanager
def gated(vit: VisionTransformer, gates: Gates) -> Iterator[None]:
    """While this lasts, the model's forward goes through the gates, for batches of their size.

    The residual stream is read by LayerNorms only, so that is where its gates stand: mean and
    variance are taken with the gates as weights, and what comes out is multiplied with them. With
    gates of 0 and 1 that is a LayerNorm over the open channels alone.
    """
    gate_B1C = gates.residual[:, None]

    def norm(module: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return gated_norm(inputs[0], gate_B1C, module)

    def factor(gate_B1C: Tensor) -> Any:
        return lambda module, inputs: (inputs[0] * gate_B1C,)

    with ExitStack() as hooks:
        for index, block in enumerate(blocks_of(vit)):
            heads_B1C = gates.heads[:, index].repeat_interleave(block.attn.head_dim, 1)[:, None]
            for handle in (
                block.norm1.register_forward_hook(norm),
                block.attn.proj.register_forward_pre_hook(factor(heads_B1C)),
                block.norm2.register_forward_hook(norm),
                block.mlp.fc2.register_forward_pre_hook(factor(gates.ffn[:, index][:, None])),
            ):
                hooks.callback(handle.remove)
        hooks.callback(vit.norm.register_forward_hook(norm).remove)
        yield


def gated_norm(x_BNC: Tensor, gate_B1C: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm with weighted mean and variance, times the gate."""
    count_B11 = gate_B1C.sum(-1, keepdim=True)
    mean_BN1 = (gate_B1C * x_BNC).sum(-1, keepdim=True) / count_B11
    apart_BNC = x_BNC - mean_BN1
    var_BN1 = (gate_B1C * apart_BNC.square()).sum(-1, keepdim=True) / count_B11
    normal_BNC = apart_BNC * torch.rsqrt(var_BN1 + norm.eps)
    return gate_B1C * (normal_BNC * norm.weight + norm.bias)

"""What a plain ViT costs, by its widths alone: parameters, bytes, multiply-adds.

A sub-model keeps k of h heads, and the same share of the residual width and of the FFN. That one
rule gives both headline ratios of ED-ViT (arXiv 2410.11650) at 2 heads of ViT-Base.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from partition.errors import PartitionError

if TYPE_CHECKING:
    from torch import nn

    from edgevit.models.vit import Block, VisionTransformer

FP32_BYTES = 4
PATCH_VALUES = 3 * 16 * 16  # numbers that the patch embedding reads for one token


@dataclass(frozen=True)
class Keep:
    """How much of a ViT is kept: heads of each block, residual channels, FFN units of each block.

    residual and ffn are counts; None is the same share of their width as of the heads.
    """

    heads: int
    residual: int | None = None
    ffn: int | None = None


@dataclass(frozen=True)
class Geometry:
    """The widths of a ViT. tokens counts the class token; classes is 0 where there is no head."""

    depth: int
    heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    tokens: int
    classes: int

    @property
    def params(self) -> int:
        """Trained numbers, position embeddings and biases included."""
        C, F, inner = self.embed_dim, self.mlp_dim, self.heads * self.head_dim
        norms = 2 * 2 * C
        attention = (C + 1) * 3 * inner + (inner + 1) * C
        mlp = (C + 1) * F + (F + 1) * C
        embed = (PATCH_VALUES + 1) * C + C + self.tokens * C
        return embed + self.depth * (norms + attention + mlp) + 2 * C + (C + 1) * self.classes

    @property
    def bytes(self) -> int:
        """The weights in float32."""
        return FP32_BYTES * self.params

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolution and of all matrix products, for one picture."""
        C, N, inner = self.embed_dim, self.tokens, self.heads * self.head_dim
        attention = N * C * 3 * inner + 2 * N * N * inner + N * inner * C
        mlp = 2 * N * C * self.mlp_dim
        return (N - 1) * PATCH_VALUES * C + self.depth * (attention + mlp) + C * self.classes

    @property
    def feature_bytes(self) -> int:
        """What a worker sends for one picture: the class token after the last norm, in float32."""
        return FP32_BYTES * self.embed_dim


def resolved(geometry: Geometry, keep: Keep) -> tuple[int, int, int]:
    """Heads, residual channels and FFN units that `keep` means. Raises PartitionError."""
    k, of = keep.heads, geometry.heads
    residual = round(k * geometry.embed_dim / of) if keep.residual is None else keep.residual
    ffn = round(k * geometry.mlp_dim / of) if keep.ffn is None else keep.ffn
    for what, count, most in (
        ("heads", keep.heads, geometry.heads),
        ("residual channels", residual, geometry.embed_dim),
        ("FFN units", ffn, geometry.mlp_dim),
    ):
        if not 1 <= count <= most:
            raise PartitionError(f"cannot keep {count} of {most} {what}: expected 1 to {most}")
    return keep.heads, residual, ffn


def scaled(geometry: Geometry, keep: Keep, classes: int | None = None) -> Geometry:
    """The geometry of the sub-model; classes is its head's, None for as many as before.

    Raises PartitionError for more than there is, or nothing.
    """
    heads, residual, ffn = resolved(geometry, keep)
    return replace(
        geometry,
        heads=heads,
        embed_dim=residual,
        mlp_dim=ffn,
        classes=geometry.classes if classes is None else classes,
    )


def plain_vit(model: nn.Module) -> VisionTransformer:
    """The same model, if it is one that can be partitioned. Raises PartitionError."""
    from edgevit.models.vit import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise PartitionError(
            f"only plain ViTs are partitioned (vit_tiny, vit_base, deit_small, ...), got "
            f"{type(model).__name__}: give one of them, with its weights"
        )
    if model.head_dist is not None:
        raise PartitionError(
            "distilled DeiTs are not partitioned: their second token and head would need a split "
            "and a fusion of their own. Give the plain one (deit_tiny, deit_small, deit_base)"
        )
    return model


def blocks_of(vit: VisionTransformer) -> list[Block]:
    """The blocks in their order; nn.Sequential forgets what is in it."""
    return cast("list[Block]", list(vit.blocks))


def geometry_of(model: nn.Module) -> Geometry:
    """The widths of a plain ViT as it is built. Raises PartitionError for another model."""
    vit = plain_vit(model)
    block = blocks_of(vit)[0]
    return Geometry(
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        head_dim=block.attn.head_dim,
        embed_dim=vit.pos_embed.shape[2],
        mlp_dim=block.mlp.fc1.out_features,
        tokens=vit.pos_embed.shape[1],
        classes=getattr(vit.head, "out_features", 0),
    )

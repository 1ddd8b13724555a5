"""A smaller ViT from three index sets: residual channels, heads of each block, FFN units.

By index_select alone, so that the same sets give the same bytes. Leaving out heads and FFN units
equals a gate of zero on them; leaving out residual channels also changes what the LayerNorms take
their mean and variance over (edvit.md, section 4: a masked LayerNorm is the reference).
"""

# Shapes: C residual channels, M heads, K head width, F FFN units, N tokens.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from edgevit.models.vit import Attention, Block, VisionTransformer
from partition.cutting.geometry import Geometry, Keep, blocks_of, geometry_of, plain_vit, resolved
from partition.errors import PartitionError

if TYPE_CHECKING:
    from partition.cutting.importance import Importance


@dataclass(frozen=True)
class Kept:
    """Ascending indices into the full model; `heads` and `ffn` have one tuple for each block."""

    residual: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    ffn: tuple[tuple[int, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Lists of numbers, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `as_json` gave, after JSON too. Raises PartitionError."""
        try:
            return cls(
                tuple(int(i) for i in value["residual"]),
                tuple(tuple(int(i) for i in row) for row in value["heads"]),
                tuple(tuple(int(i) for i in row) for row in value["ffn"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PartitionError(f"these are no indices of a sub-model ({error!r})") from error

    def inside(self, inner: Kept) -> Kept:
        """`inner` counts within the sub-model that this makes; the same within the full model."""
        return Kept(
            tuple(self.residual[i] for i in inner.residual),
            _within(self.heads, inner.heads),
            _within(self.ffn, inner.ffn),
        )


def _within(
    ours: tuple[tuple[int, ...], ...], inner: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    pairs = zip(ours, inner, strict=True)
    return tuple(tuple(row[i] for i in indices) for row, indices in pairs)


def everything(geometry: Geometry) -> Kept:
    """All indices of a model."""
    heads, ffn = tuple(range(geometry.heads)), tuple(range(geometry.mlp_dim))
    return Kept(
        tuple(range(geometry.embed_dim)), (heads,) * geometry.depth, (ffn,) * geometry.depth
    )


def choose(importance: Importance, keep: Keep) -> Kept:
    """The most important channels, heads and units; of equals the first.

    The residual channels are the same in all blocks, heads and FFN units are each block's own, and
    as many in each. Raises PartitionError.
    """
    depth, heads = importance.heads.shape
    geometry = Geometry(depth, heads, 1, len(importance.residual), importance.ffn.shape[1], 1, 0)
    heads, residual, ffn = resolved(geometry, keep)
    return Kept(
        _top(importance.residual, residual),
        tuple(_top(row_M, heads) for row_M in importance.heads),
        tuple(_top(row_F, ffn) for row_F in importance.ffn),
    )


def slice_vit(
    model: nn.Module, kept: Kept, classes: Sequence[int] | None = None
) -> VisionTransformer:
    """A new, smaller ViT with copies of the kept weights; the model itself is not changed.

    classes: the rows of the head that are kept, in this order; None for all of them. Raises
    PartitionError for a model that is no plain ViT, and for indices that are not its own.
    """
    vit, geometry = plain_vit(model), geometry_of(model)
    classes = range(geometry.classes) if classes is None else classes
    _check(kept, classes, geometry)
    small = VisionTransformer(
        len(kept.residual), geometry.depth, len(kept.heads[0]), len(classes), vit.input_size,
        head_dim=geometry.head_dim, mlp_dim=len(kept.ffn[0]),
    ).to(device=vit.pos_embed.device, dtype=vit.pos_embed.dtype)  # fmt: skip
    residual, rows = (_index(vit, i) for i in (kept.residual, classes))
    values = {
        "cls_token": vit.cls_token.index_select(2, residual),
        "pos_embed": vit.pos_embed.index_select(2, residual),
        "patch_embed.proj.weight": vit.patch_embed.proj.weight.index_select(0, residual),
        "patch_embed.proj.bias": _rows(vit.patch_embed.proj.bias, residual),
        "head.weight": vit.head.weight.index_select(0, rows).index_select(1, residual),
        "head.bias": vit.head.bias.index_select(0, rows),
    }
    values |= _norm("norm", vit.norm, residual)
    for index, block in enumerate(blocks_of(vit)):
        heads, ffn = (_index(vit, i[index]) for i in (kept.heads, kept.ffn))
        named = _block(block, residual, heads, ffn)
        values |= {f"blocks.{index}.{name}": value for name, value in named.items()}
    small.load_state_dict(values)
    return small.train(vit.training)


def _block(block: Block, residual: Tensor, heads: Tensor, ffn: Tensor) -> dict[str, Tensor]:
    attn, mlp = block.attn, block.mlp
    inner = _channels(heads, attn.head_dim)
    qkv = _qkv_rows(attn, inner)
    return {
        **_norm("norm1", block.norm1, residual),
        "attn.qkv.weight": attn.qkv.weight.index_select(0, qkv).index_select(1, residual),
        "attn.qkv.bias": attn.qkv.bias.index_select(0, qkv),
        "attn.proj.weight": attn.proj.weight.index_select(0, residual).index_select(1, inner),
        "attn.proj.bias": attn.proj.bias.index_select(0, residual),
        **_norm("norm2", block.norm2, residual),
        "mlp.fc1.weight": mlp.fc1.weight.index_select(0, ffn).index_select(1, residual),
        "mlp.fc1.bias": mlp.fc1.bias.index_select(0, ffn),
        "mlp.fc2.weight": mlp.fc2.weight.index_select(0, residual).index_select(1, ffn),
        "mlp.fc2.bias": mlp.fc2.bias.index_select(0, residual),
    }


def _norm(name: str, norm: nn.LayerNorm, residual: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.weight": norm.weight.index_select(0, residual),
        f"{name}.bias": norm.bias.index_select(0, residual),
    }


def _rows(bias: Tensor | None, index: Tensor) -> Tensor:
    assert bias is not None
    return bias.index_select(0, index)


def _channels(heads: Tensor, head_dim: int) -> Tensor:
    """Heads (M,) to their channels (M * K,)."""
    within = torch.arange(head_dim, device=heads.device)
    return (heads[:, None] * head_dim + within).flatten()


def _qkv_rows(attn: Attention, inner: Tensor) -> Tensor:
    """Channels of the heads to the rows of qkv: q of every head, then k, then v."""
    width = attn.num_heads * attn.head_dim
    return torch.cat([inner, inner + width, inner + 2 * width])


def _index(vit: VisionTransformer, indices: Sequence[int]) -> Tensor:
    return torch.tensor(list(indices), dtype=torch.long, device=vit.pos_embed.device)


def _top(scores: Tensor, count: int) -> tuple[int, ...]:
    order = scores.argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


def _check(kept: Kept, classes: Sequence[int], geometry: Geometry) -> None:
    for what, rows in (("heads", kept.heads), ("FFN units", kept.ffn)):
        if len(rows) != geometry.depth:
            raise PartitionError(
                f"expected kept {what} for each of {geometry.depth} blocks, got {len(rows)}"
            )
        if len({len(row) for row in rows}) > 1:
            raise PartitionError(f"every block keeps as many {what}, got {sorted(map(len, rows))}")
    for what, indices, limit in (
        ("residual channels", kept.residual, geometry.embed_dim),
        *(("heads", row, geometry.heads) for row in kept.heads),
        *(("FFN units", row, geometry.mlp_dim) for row in kept.ffn),
        ("classes", classes, geometry.classes),
    ):
        if not indices or len(set(indices)) < len(indices) or not set(indices) <= set(range(limit)):
            raise PartitionError(
                f"kept {what} must be different numbers from 0 to {limit - 1}, at least one, got "
                f"{list(indices)}"
            )

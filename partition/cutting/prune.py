"""Which indices of a ViT a sub-model keeps, from pictures of its classes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from torch import nn

from partition.cutting.geometry import Keep, geometry_of, resolved
from partition.cutting.importance import Batches, class_importance
from partition.cutting.slicing import Kept, choose, slice_vit


def prune(
    model: nn.Module,
    batches: Batches,
    keep: Keep,
    classes: Collection[int] | None = None,
    *,
    recompute: bool = False,
    draws: int | None = None,
    seed: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Kept:
    """The most important channels, heads and units for the pictures of `classes`.

    batches: normalised pictures and labels; can be gone through again.
    recompute: score again after each stage, on what the stage before left: residual channels, then
    heads, then FFN units. Off by default: everything is scored once, on the whole model, whose
    predictions are good; those of a model half pruned and not yet tuned are not.
    draws, seed, tell: as `class_importance` takes them. Heads are kept whole. Raises
    PartitionError.
    """

    def scored(vit: nn.Module, wanted: Keep) -> Kept:
        return choose(
            class_importance(vit, batches, classes, draws=draws, seed=seed, tell=tell), wanted
        )

    geometry = geometry_of(model)
    heads, residual, ffn = resolved(geometry, keep)
    if not recompute:
        return scored(model, Keep(heads, residual, ffn))
    narrow = Keep(geometry.heads, residual, geometry.mlp_dim)
    kept = scored(model, narrow)
    for stage in (replace(narrow, heads=heads), Keep(heads, residual, ffn)):
        kept = kept.inside(scored(slice_vit(model, kept), stage))
    return kept

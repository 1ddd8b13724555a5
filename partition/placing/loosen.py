"""How much each sub-model keeps: all heads at first, one less as long as something does not fit.

The loop of ED-ViT (edvit.md, 1.5): where a placement fails, the sub-model to blame loses a head,
else the largest one; then everything is placed again, and at the end heads are given back where
there is room after all. Nothing is pruned here: what a sub-model costs follows from its geometry,
so the real pruning happens once, from the original model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from partition.cutting.geometry import Geometry, Keep, scaled
from partition.errors import InfeasibleError
from partition.placing.assign import Placement, Refusal, place
from partition.placing.budgets import Budget, Cost, cost_of
from partition.placing.quantities import shown_bytes


@dataclass(frozen=True)
class Limits:
    """What holds for all devices together: seconds of the slowest, bytes of all sub-models."""

    latency: float | None = None
    total_size: int | None = None


@dataclass(frozen=True)
class Fitted:
    """What each sub-model keeps, its geometry and cost, and where it goes."""

    keeps: tuple[Keep, ...]
    geometries: tuple[Geometry, ...]
    costs: tuple[Cost, ...]
    placement: Placement


def loosen(
    whole: Geometry,
    parts: Sequence[Sequence[int]],
    budgets: Sequence[Budget],
    limits: Limits,
    *,
    keep: Keep | None = None,
    logits: bool = False,
    extra_bytes: Mapping[int, int] | None = None,
) -> Fitted:
    """Find the largest sub-models that fit, one for each part (a set of classes).

    keep is what every sub-model begins with, None for all heads. logits: the answer is the logits
    of the part's classes and of "other", and not the features. extra_bytes are what the artefact of
    a sub-model was found to take beyond its weights. Raises InfeasibleError with the constraint
    that binds and its numbers, where one head each is still too much.
    """
    most = whole.heads if keep is None else keep.heads
    extra = extra_bytes or {}

    def tried(heads: Sequence[int]) -> tuple[Fitted | Refusal, list[Cost]]:
        keeps = [Keep(h) if keep is None or h != keep.heads else keep for h in heads]
        geometries = [
            scaled(whole, k, classes=len(part) + 1 if logits else 0)
            for k, part in zip(keeps, parts, strict=True)
        ]
        costs = [
            cost_of(g, g.classes if logits else g.embed_dim, extra.get(i, 0))
            for i, g in enumerate(geometries)
        ]
        found = _too_large(geometries, limits.total_size) or place(costs, budgets, limits.latency)
        if isinstance(found, Refusal):
            return found, costs
        return Fitted(tuple(keeps), tuple(geometries), tuple(costs), found), costs

    heads = [most] * len(parts)
    found, costs = tried(heads)
    while isinstance(found, Refusal):
        victim = _victim(found, heads, costs)
        if victim is None:
            raise _infeasible(found, len(parts))
        heads[victim] -= 1
        found, costs = tried(heads)
    # A shrunken sub-model may have moved to a device that leaves another one more room.
    growing = {i for i, h in enumerate(heads) if h < most}
    while growing:
        index = min(growing, key=lambda i: (heads[i], i))
        heads[index] += 1
        larger, _ = tried(heads)
        if isinstance(larger, Refusal):
            heads[index] -= 1
            growing.remove(index)
            continue
        found = larger
        if heads[index] == most:
            growing.remove(index)
    return found


def default_limits(whole: Geometry, latency: float | None, total_size: int | None) -> Limits:
    """With no total size given, all sub-models together are no larger than the model they replace.

    Without any limit the loop would stop before it began, at copies of the whole model.
    """
    # A bare sub-model of all heads may have one row more in its head, that of "other".
    fallback = replace(whole, classes=whole.classes + 1).bytes
    return Limits(latency, fallback if total_size is None else total_size)


def _too_large(geometries: Sequence[Geometry], total: int | None) -> Refusal | None:
    needed = sum(geometry.bytes for geometry in geometries)
    if total is None or needed <= total:
        return None
    return Refusal(
        ("total_size",),
        f"all {len(geometries)} sub-models take {shown_bytes(needed)}, the limit for all of them "
        f"is {shown_bytes(total)}",
    )


def _victim(refusal: Refusal, heads: Sequence[int], costs: Sequence[Cost]) -> int | None:
    """The sub-model that loses a head: the one to blame, else the largest that has two."""
    if refusal.submodel is not None:
        return refusal.submodel if heads[refusal.submodel] > 1 else None
    able = [i for i, h in enumerate(heads) if h > 1]
    return max(able, key=lambda i: (costs[i].memory, -i)) if able else None


def _infeasible(refusal: Refusal, parts: int) -> InfeasibleError:
    sure = "" if refusal.certain else " (as far as the search went)"
    return InfeasibleError(
        f"it does not fit even with one head in each of {parts} sub-models{sure}. What binds is "
        f"{' and '.join(refusal.constraints)}: {refusal.text}. Give more of it in the cluster "
        "file, another device, or a smaller model"
    )

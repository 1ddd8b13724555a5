"""Which classes each sub-model answers for."""

# Shapes: Y classes, P parts.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partition.errors import PartitionError

METHODS = ("balanced", "contiguous", "importance", "explicit")
STARTS = 8

Split = tuple[tuple[int, ...], ...]
"""For each sub-model its classes, ascending; every class is in one of them."""


def split(
    method: str,
    classes: int,
    parts: int,
    seed: int = 0,
    importance: ArrayLike | None = None,
    explicit: Sequence[Sequence[int]] | None = None,
) -> Split:
    """Deal out the classes 0 to classes - 1 to `parts` sub-models.

    method: "balanced", shuffled by `seed`; "contiguous", in their order; "importance", classes that
    need the same channels together (the idea of NNFacet, doi 10.1109/TMC.2023.3238342); "explicit",
    as `explicit` says. Of all but the last, some parts have one class more than others at most.
    importance: (classes, anything), how much each class needs each channel, head or unit.

    Raises PartitionError.
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        raise PartitionError(
            f"unknown class split '{method}', expected one of {', '.join(METHODS)}{hint}"
        )
    if not 1 <= parts <= classes:
        raise PartitionError(
            f"{classes} classes cannot be split into {parts} parts: expected 1 to {classes}"
        )
    if method == "explicit":
        return _explicit(classes, parts, explicit)
    if method == "importance":
        return _by_importance(classes, parts, seed, importance)
    order = np.arange(classes)
    if method == "balanced":
        order = np.random.default_rng(seed).permutation(order)
    return _sorted(np.array_split(order, parts))


def _sorted(groups: Iterable[Iterable[int]]) -> Split:
    return tuple(tuple(sorted(int(c) for c in group)) for group in groups)


def _explicit(classes: int, parts: int, given: Sequence[Sequence[int]] | None) -> Split:
    if given is None:
        raise PartitionError("the class split 'explicit' needs the classes of each part")
    if len(given) != parts:
        raise PartitionError(f"expected the classes of {parts} parts, got {len(given)} lists")
    counts = np.zeros(classes, dtype=np.int64)
    for index, part in enumerate(given):
        if not part:
            raise PartitionError(f"part {index} has no classes")
        for label in part:
            if not 0 <= label < classes:
                raise PartitionError(f"there is no class {label}: expected 0 to {classes - 1}")
            counts[label] += 1
    for what, wrong in (("none", counts == 0), ("several", counts > 1)):
        if wrong.any():
            raise PartitionError(
                f"every class belongs to one part, and class {int(wrong.argmax())} is in {what}"
            )
    return _sorted(given)


def _by_importance(classes: int, parts: int, seed: int, importance: ArrayLike | None) -> Split:
    if importance is None:
        raise PartitionError("the class split 'importance' needs the importance for each class")
    scores = np.asarray(importance, dtype=np.float64)
    if scores.ndim != 2 or len(scores) != classes or not np.isfinite(scores).all():
        raise PartitionError(
            f"expected finite importance of shape ({classes}, anything), got {scores.shape}"
        )
    apart_YY = _distances(scores)
    rng = np.random.default_rng(seed)
    found = [_improved(_start(classes, parts, rng), apart_YY, parts) for _ in range(STARTS)]
    best_Y = min(found, key=lambda part_Y: _inside(part_Y, apart_YY))
    # Parts in the order of their first class, so that one clustering has one name.
    groups = [np.flatnonzero(best_Y == p) for p in range(parts)]
    return tuple(sorted(_sorted(groups)))


def _distances(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """One minus the cosine of what two classes need, beyond what all of them need alike."""
    share = scores / np.maximum(scores.sum(1, keepdims=True), np.finfo(float).tiny)
    beyond = share - share.mean(0)
    length = np.linalg.norm(beyond, axis=1, keepdims=True)
    direction = beyond / np.where(length > 0, length, 1)
    apart_YY: NDArray[np.float64] = 1 - direction @ direction.T
    np.fill_diagonal(apart_YY, 0)
    return apart_YY


def _start(classes: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.permutation(np.arange(classes) % parts)


def _inside(part_Y: NDArray[np.int64], apart_YY: NDArray[np.float64]) -> float:
    """The sum of the distances between classes of the same part."""
    return float(apart_YY[part_Y[:, None] == part_Y].sum())


def _improved(
    part_Y: NDArray[np.int64], apart_YY: NDArray[np.float64], parts: int
) -> NDArray[np.int64]:
    """Swap the two classes that gain most, until none gain."""
    part_Y = part_Y.copy()
    everyone = np.arange(len(part_Y))
    while True:
        to_YP = apart_YY @ np.eye(parts)[part_Y]
        # What moving class i into the part of class j adds; i itself is still there, at 0.
        move_YY = to_YP[:, part_Y] - to_YP[everyone, part_Y][:, None]
        swap_YY = move_YY + move_YY.T - 2 * apart_YY
        swap_YY[part_Y[:, None] == part_Y] = 0
        i, j = np.unravel_index(swap_YY.argmin(), swap_YY.shape)
        if swap_YY[i, j] > -1e-9:
            return part_Y
        part_Y[[i, j]] = part_Y[[j, i]]

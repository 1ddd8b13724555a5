"""The four ways to deal out classes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from partition.cutting.classes import split
from partition.errors import PartitionError


@pytest.mark.parametrize("method", ["balanced", "contiguous", "importance"])
@pytest.mark.parametrize(("classes", "parts"), [(10, 1), (10, 3), (10, 10), (62, 5), (2, 2)])
def test_every_class_is_in_one_part_and_parts_are_alike(method, classes, parts):
    importance = np.random.default_rng(1).random((classes, 20))
    found = split(method, classes, parts, 3, importance)
    assert sorted(c for part in found for c in part) == list(range(classes))
    sizes = [len(part) for part in found]
    assert len(found) == parts and max(sizes) - min(sizes) <= 1
    assert all(list(part) == sorted(part) for part in found)


def test_balanced_is_by_the_seed_and_contiguous_in_order():
    assert split("balanced", 40, 4, 1) == split("balanced", 40, 4, 1)
    assert split("balanced", 40, 4, 1) != split("balanced", 40, 4, 2)
    assert split("contiguous", 7, 3) == ((0, 1, 2), (3, 4), (5, 6))


def test_classes_that_need_the_same_are_together():
    """Three groups of channels, strangers' classes interleaved."""
    rng = np.random.default_rng(0)
    group = np.array([0, 1, 2, 0, 1, 2, 2, 1, 0])
    needs = rng.uniform(0.0, 0.3, (9, 30)) + 5  # what all need alike says nothing
    for label, of in enumerate(group):
        needs[label, 10 * of : 10 * of + 10] += rng.uniform(0.5, 1.0, 10)
    assert split("importance", 9, 3, 7, needs) == ((0, 3, 8), (1, 4, 7), (2, 5, 6))


def test_importance_finds_the_best_of_all_splits_in_two():
    """Against every split of 8 classes in two halves, by the same distance computed apart."""
    scores = np.random.default_rng(5).random((8, 6))
    share = scores / scores.sum(1, keepdims=True)
    beyond = share - share.mean(0)

    def apart(a: int, b: int) -> float:
        lengths = np.linalg.norm(beyond[a]) * np.linalg.norm(beyond[b])
        return 1 - float(beyond[a] @ beyond[b] / lengths)

    def cost(half: tuple[int, ...]) -> float:
        other = tuple(sorted(set(range(8)) - set(half)))
        return sum(apart(a, b) for part in (half, other) for a, b in combinations(part, 2))

    found = split("importance", 8, 2, 0, scores)
    best = min(cost(half) for half in combinations(range(8), 4))
    assert cost(found[0]) == pytest.approx(best)


def test_explicit_is_taken_as_it_is():
    assert split("explicit", 4, 2, explicit=[[3, 0], [1, 2]]) == ((0, 3), (1, 2))


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        (None, "needs the classes of each part"),
        ([[0, 1, 2, 3]], "the classes of 2 parts, got 1"),
        ([[0, 1, 2], []], "part 1 has no classes"),
        ([[0, 1], [2, 4]], "there is no class 4: expected 0 to 3"),
        ([[0, 1], [2]], "class 3 is in none"),
        ([[0, 1, 2], [2, 3]], "class 2 is in several"),
    ],
)
def test_an_explicit_split_that_is_none_is_refused(explicit, message):
    with pytest.raises(PartitionError, match=message):
        split("explicit", 4, 2, explicit=explicit)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(PartitionError, match="Did you mean 'balanced'"):
        split("balance", 10, 2)
    with pytest.raises(PartitionError, match="10 classes cannot be split into 11 parts"):
        split("balanced", 10, 11)
    with pytest.raises(PartitionError, match="needs the importance"):
        split("importance", 10, 2)
    with pytest.raises(PartitionError, match=r"shape \(10, anything\), got \(3, 4\)"):
        split("importance", 10, 2, importance=np.ones((3, 4)))

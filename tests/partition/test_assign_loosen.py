"""The loop that takes heads away until everything fits, and says why where it never does."""

from __future__ import annotations

import pytest

from partition.cutting.geometry import Geometry, Keep, scaled
from partition.errors import InfeasibleError
from partition.placing.assign import Placement
from partition.placing.budgets import Budget, loads_of
from partition.placing.loosen import Limits, default_limits, loosen

VIT_B = Geometry(12, 12, 64, 768, 3072, 197, 10)
MIB = 2**20
HALVES = [range(5), range(5, 10)]


def parts(count: int) -> list[tuple[int, ...]]:
    return [(i,) for i in range(count)]


def test_nothing_is_taken_where_all_fits():
    found = loosen(VIT_B, HALVES, [Budget("a", 1e9)], Limits())
    assert [k.heads for k in found.keeps] == [12, 12]


@pytest.mark.parametrize(("count", "heads"), [(1, 8), (2, 6), (3, 5), (5, 3), (10, 2)])
def test_the_budgets_of_the_reference_give_its_heads(count, heads):
    """edvit.md, 1.6: 180 MiB in all. Some may keep one head more than its uniform k."""
    budgets = [Budget(f"d{i}", 1e9) for i in range(count)]
    found = loosen(VIT_B, parts(count), budgets, Limits(total_size=180 * MIB))
    kept = [k.heads for k in found.keeps]
    assert min(kept) == heads and max(kept) <= heads + 1
    assert sum(c.memory for c in found.costs) <= 180 * MIB


def test_without_limits_the_parts_are_no_larger_than_the_whole():
    limits = default_limits(VIT_B, None, None)
    found = loosen(VIT_B, parts(4), [Budget("a", 1e9)], limits)
    assert sum(c.memory for c in found.costs) <= VIT_B.bytes * 1.001
    assert all(1 < k.heads < 12 for k in found.keeps)
    alone = loosen(VIT_B, [range(10)], [Budget("a", 1e9)], limits, logits=True)
    assert alone.keeps[0].heads == 12


def test_every_device_keeps_its_memory():
    budgets = [Budget("a", 1e9, memory=60 * MIB), Budget("b", 1e9, memory=25 * MIB)]
    found = loosen(VIT_B, HALVES, budgets, Limits())
    for load in loads_of(found.costs, budgets, found.placement.device_of):
        assert load.memory <= load.budget.memory
    # The one on the larger device got back what it lost while the other was too large.
    assert sorted(k.heads for k in found.keeps) == [3, 5]


def test_what_it_keeps_is_always_measured_on_the_whole_model():
    found = loosen(VIT_B, HALVES, [Budget("a", 1e9, memory=50 * MIB)], Limits())
    for keep, geometry in zip(found.keeps, found.geometries, strict=True):
        assert geometry == scaled(VIT_B, keep, classes=0)


def test_a_latency_takes_heads_too():
    budgets = [Budget("a", 1e9), Budget("b", 4e9)]
    found = loosen(VIT_B, HALVES, budgets, Limits(latency=1.3))
    assert isinstance(found.placement, Placement) and found.placement.latency <= 1.3
    assert any(k.heads < 12 for k in found.keeps)


def test_it_begins_where_it_is_told_to():
    found = loosen(VIT_B, HALVES, [Budget("a", 1e9)], Limits(), keep=Keep(2))
    assert [k.heads for k in found.keeps] == [2, 2]
    assert found.geometries[0].params == pytest.approx(2.505e6, rel=0.01)


def test_what_an_artefact_takes_beyond_its_weights_counts():
    budget = [Budget("a", 1e9, memory=10 * MIB)]
    light = loosen(VIT_B, [range(10)], budget, Limits())
    heavy = loosen(VIT_B, [range(10)], budget, Limits(), extra_bytes={0: 4 * MIB})
    assert light.keeps[0].heads == 2 and heavy.keeps[0].heads == 1


@pytest.mark.parametrize(
    ("budget", "limits", "constraint", "numbers"),
    [
        (Budget("pi", 1e9, memory=2 * MIB), Limits(), "memory", ["2.52 MiB", "pi", "2.00 MiB"]),
        (Budget("pi", 1e6), Limits(latency=0.5), "latency", ["pi", "500 ms"]),
        (Budget("pi", 1e9), Limits(total_size=3 * MIB), "total_size", ["3.00 MiB", "5.05 MiB"]),
        (
            Budget("pi", 1e9, energy=1e-3, joules_per_mac=1e-9),
            Limits(), "energy", ["pi", "0.001 J"],
        ),
    ],
)  # fmt: skip
def test_one_head_that_is_still_too_much_names_what_binds(budget, limits, constraint, numbers):
    with pytest.raises(InfeasibleError) as found:
        loosen(VIT_B, HALVES, [budget], limits)
    said = str(found.value)
    assert "even with one head" in said and f"What binds is {constraint}:" in said
    for number in numbers:
        assert number in said

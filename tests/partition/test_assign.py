"""Placement: within every budget, as good as brute force, and a refusal that names what binds."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partition.errors import InfeasibleError
from partition.placing.assign import Placement, assign, exact, greedy, makespan, place
from partition.placing.budgets import Budget, Cost, loads_of, refused_alone
from partition.placing.replicas import replicas

COSTS = st.builds(
    Cost,
    memory=st.integers(1, 40),
    macs=st.integers(1, 1000),
    answer=st.sampled_from([0, 64, 512]),
)
BUDGETS = st.builds(
    Budget,
    name=st.just("d"),
    macs_per_s=st.sampled_from([50.0, 100.0, 333.0]),
    memory=st.none() | st.integers(10, 120),
    energy=st.none() | st.floats(200, 3000),
    joules_per_mac=st.sampled_from([0.5, 1.0]),
    link=st.none() | st.sampled_from([1000.0, 1e6]),
)
LATENCY = st.none() | st.floats(2, 60)
CASES = (
    st.lists(COSTS, min_size=1, max_size=5),
    st.lists(BUDGETS, min_size=1, max_size=3),
    LATENCY,
)


def within(costs, budgets, latency, device_of) -> bool:
    """Whether a placement keeps to all limits; written apart from the code that makes one."""
    for d, budget in enumerate(budgets):
        mine = [c for c, at in zip(costs, device_of, strict=True) if at == d]
        if budget.memory is not None and sum(c.memory for c in mine) > budget.memory:
            return False
        joules = sum(c.macs for c in mine) * budget.joules_per_mac
        if budget.energy is not None and joules > budget.energy * (1 + 1e-6):
            return False
        if latency is not None and seconds(mine, budget) > latency * (1 + 1e-6):
            return False
    return True


def seconds(mine, budget) -> float:
    links = sum(8 * c.answer for c in mine) / budget.link if budget.link else 0.0
    return sum(c.macs for c in mine) / budget.macs_per_s + links


def brute_force(costs, budgets, latency) -> float:
    """The smallest makespan of all placements; infinite where there is none."""
    best = math.inf
    for device_of in itertools.product(range(len(budgets)), repeat=len(costs)):
        if within(costs, budgets, latency, device_of):
            times = [
                seconds([c for c, at in zip(costs, device_of, strict=True) if at == d], budget)
                for d, budget in enumerate(budgets)
            ]
            best = min(best, max(times))
    return best


@settings(max_examples=150, deadline=None)
@given(*CASES)
def test_exact_is_brute_force_and_no_budget_is_exceeded(costs, budgets, latency):
    best = brute_force(costs, budgets, latency)
    found = place(costs, budgets, latency)
    if math.isinf(best):
        assert not isinstance(found, Placement)
        assert found.constraints and found.text and found.certain
        return
    assert isinstance(found, Placement)
    assert within(costs, budgets, latency, found.device_of)
    assert found.method == "exact"
    assert found.latency == pytest.approx(best, rel=1e-9)
    assert found.greedy_gap is None or found.greedy_gap >= -1e-9


@settings(max_examples=100, deadline=None)
@given(*CASES)
def test_greedy_stays_within_the_budgets(costs, budgets, latency):
    device_of = greedy(costs, budgets, latency)
    if device_of is not None:
        assert within(costs, budgets, latency, device_of)
        found = place(costs, budgets, latency)
        assert isinstance(found, Placement)
        assert found.greedy_latency == pytest.approx(makespan(costs, budgets, device_of))


@settings(max_examples=100, deadline=None)
@given(*CASES, st.integers(0, 3))
def test_replicas_stay_within_the_budgets(costs, budgets, latency, most):
    device_of = greedy(costs, budgets, latency)
    if device_of is None:
        return
    lost = [float(c.macs % 7) for c in costs]
    copies = replicas(costs, budgets, device_of, lost, most=most, latency=latency)
    everything = [
        (cost, d)
        for cost, first, more in zip(costs, device_of, copies, strict=True)
        for d in (first, *more)
    ]
    assert within([c for c, _ in everything], budgets, latency, [d for _, d in everything])
    for first, more in zip(device_of, copies, strict=True):
        assert len(more) <= most
        assert len({first, *more}) == 1 + len(more), "a copy beside the original helps nobody"


def test_the_greedy_gap_is_told():
    """Three and two pieces of work that fit two devices exactly, but not the dearest first."""
    costs = [Cost(1, macs, 0) for macs in (3, 3, 2, 2, 2)]
    found = assign(costs, [Budget("a", 1.0), Budget("b", 1.0)])
    assert found.latency == 6.0
    assert found.greedy_latency == 7.0
    assert found.greedy_gap == pytest.approx(1 / 6)


def test_exact_finds_a_way_where_greed_has_none():
    costs = [Cost(memory, memory, 0) for memory in (5, 4, 3, 2)]
    budgets = [Budget("a", 1.0, memory=7), Budget("b", 1.0, memory=7)]
    tight = [Cost(4, 10, 0), Cost(3, 9, 0), Cost(3, 8, 0), Cost(2, 1, 0), Cost(2, 1, 0)]
    assert greedy(tight, budgets) is None
    assert sorted(
        load.memory for load in loads_of(tight, budgets, assign(tight, budgets).device_of)
    ) == [7, 7]
    assert assign(costs, budgets).latency == 7.0


def test_faster_devices_take_more():
    costs = [Cost(1, 100, 0)] * 6
    found = assign(costs, [Budget("slow", 100.0), Budget("fast", 500.0)])
    assert [found.device_of.count(d) for d in (0, 1)] == [1, 5]


def test_a_slow_link_counts():
    costs = [Cost(1, 100, 1000)] * 2
    found = assign(costs, [Budget("far", 1000.0, link=1000.0), Budget("near", 1000.0)])
    assert found.device_of == (1, 1)


@pytest.mark.parametrize(
    ("costs", "budgets", "latency", "constraint", "numbers"),
    [
        ([Cost(9, 1, 0)], [Budget("a", 1.0, memory=8)], None, "memory", ["9 B", "8 B", "a"]),
        (
            [Cost(1, 50, 0)],
            [Budget("a", 1.0, energy=40.0, joules_per_mac=1.0)],
            None, "energy", ["50 J", "40 J"],
        ),
        ([Cost(1, 50, 0)], [Budget("a", 100.0)], 0.1, "latency", ["500 ms", "100 ms"]),
        (
            [Cost(6, 1, 0)] * 2,
            [Budget("a", 1.0, memory=8), Budget("b", 1.0, memory=3)],
            None, "memory", ["12 B", "a 8 B", "b 3 B"],
        ),
        ([Cost(1, 60, 0)] * 3, [Budget("a", 1.0, memory=9)] , 100.0, "latency", ["180", "100"]),
        (
            [Cost(1, 60, 0)] * 2,
            [Budget("a", 1.0, energy=70.0, joules_per_mac=1.0, memory=5)],
            None, "energy", ["120 J", "70 J"],
        ),
    ],
)  # fmt: skip
def test_what_binds_is_named_with_its_numbers(costs, budgets, latency, constraint, numbers):
    with pytest.raises(InfeasibleError) as found:
        assign(costs, budgets, latency)
    assert found.value.exit_code == 1
    said = str(found.value)
    assert f"no placement, {constraint}:" in said
    for number in numbers:
        assert number in said


def test_a_device_that_is_short_of_another_thing_is_no_excuse():
    """The one with memory has no energy: what is in the way is its energy."""
    budgets = [
        Budget("small", 1.0, memory=1),
        Budget("tired", 1.0, memory=100, energy=1.0, joules_per_mac=1.0),
    ]
    found = refused_alone(0, Cost(50, 10, 0), budgets, None)
    assert found is not None and found[0] == "energy" and "tired" in found[1]


def test_many_equal_submodels_are_placed_at_once():
    """Sixteen alike on sixteen alike: without the symmetry this tree has 16^16 leaves."""
    costs, budgets = [Cost(1, 10, 4)] * 16, [Budget(f"d{i}", 1.0, memory=2) for i in range(16)]
    best, whole = exact(costs, budgets)
    assert whole and best is not None and sorted(best) == list(range(16))


def test_more_than_the_search_takes_is_placed_by_greed():
    costs = [Cost(1, i + 1, 0) for i in range(20)]
    found = assign(costs, [Budget(f"d{i}", 1.0) for i in range(4)])
    assert found.method == "greedy"
    assert found.latency <= 1.34 * sum(c.macs for c in costs) / 4


def test_the_same_costs_give_the_same_placement():
    costs = [Cost(i % 3 + 1, 10 + i % 4, 8) for i in range(9)]
    budgets = [Budget(f"d{i}", 1.0 + i % 2, memory=9) for i in range(3)]
    assert assign(costs, budgets) == assign(list(costs), list(budgets))


def test_replicas_go_to_the_dearest_to_lose():
    costs = [Cost(4, 1, 0), Cost(4, 1, 0), Cost(4, 1, 0)]
    budgets = [Budget("a", 1.0, memory=8), Budget("b", 1.0, memory=4), Budget("c", 1.0, memory=4)]
    assert replicas(costs, budgets, (0, 1, 2), [1.0, 2.0, 3.0], most=1) == ((), (), (0,))
    assert replicas(costs, budgets, (0, 1, 2), [3.0, 2.0, 1.0], most=1) == ((), (0,), ())
    assert replicas(costs, budgets, (0, 1, 2), [1.0, 2.0, 3.0], most=0) == ((), (), ())

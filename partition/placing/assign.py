"""Which sub-model goes on which device: the slowest device is to be as quick as can be.

Greedy as in EC-SNN and ED-ViT (edvit.md, 1.7): the dearest sub-model first, each on the device
that is the soonest done with all it has. A branch and bound finds the best for small cases, and
finds a placement where the greedy way paints itself into a corner. Several sub-models may share a
device. Nothing here is drawn: the same costs give the same placement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from partition.errors import InfeasibleError
from partition.placing.budgets import (
    CONSTRAINTS,
    Budget,
    Constraint,
    Cost,
    Load,
    loads_of,
    refused_alone,
)
from partition.placing.quantities import shown_bytes, shown_seconds

Method = Literal["greedy", "exact", "best found"]

EXACT_SUBMODELS = 16
EXACT_DEVICES = 16
MOST_NODES = 50_000  # of the search tree; counted, not timed, so that a slow machine plans alike


@dataclass(frozen=True)
class Placement:
    """device_of[i] is the device of sub-model i; latency is that of the slowest device, seconds.

    greedy_latency is what the greedy way alone reaches, None where it finds no placement. `method`
    is 'best found' where the search tree was too large to be searched to its end.
    """

    device_of: tuple[int, ...]
    latency: float
    method: Method
    greedy_latency: float | None

    @property
    def greedy_gap(self) -> float | None:
        """How much longer the greedy placement takes than this one: 0.1 is a tenth."""
        return None if self.greedy_latency is None else self.greedy_latency / self.latency - 1


@dataclass(frozen=True)
class Refusal:
    """Why there is no placement: the constraints that bind, and the sub-model to blame if one is.

    certain is False where the search gave up before it had seen every case.
    """

    constraints: tuple[Constraint, ...]
    text: str
    submodel: int | None = None
    certain: bool = True


def assign(
    costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None = None
) -> Placement:
    """Place every sub-model. latency (seconds) is what no device may be above; None is no limit.

    Raises InfeasibleError that names the binding constraint and its numbers.
    """
    found = place(costs, budgets, latency)
    if isinstance(found, Refusal):
        raise InfeasibleError(f"no placement, {' and '.join(found.constraints)}: {found.text}")
    return found


def place(
    costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None = None
) -> Placement | Refusal:
    """The same, but a refusal is an answer, for who can make the sub-models smaller."""
    for index, cost in enumerate(costs):
        alone = refused_alone(index, cost, budgets, latency)
        if alone is not None:
            return Refusal((alone[0],), alone[1], index)
    by_greed = greedy(costs, budgets, latency)
    greedy_latency = None if by_greed is None else makespan(costs, budgets, by_greed)
    if len(costs) > EXACT_SUBMODELS or len(budgets) > EXACT_DEVICES:
        if by_greed is None or greedy_latency is None:
            return _together(costs, budgets, latency, certain=False)
        return Placement(by_greed, greedy_latency, "greedy", greedy_latency)
    best, whole = exact(costs, budgets, latency, start=by_greed)
    if best is None:
        return _together(costs, budgets, latency, certain=whole)
    method: Method = "exact" if whole else "best found"
    return Placement(best, makespan(costs, budgets, best), method, greedy_latency)


def greedy(
    costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None = None
) -> tuple[int, ...] | None:
    """The dearest first, each where it is done soonest; None where one finds no place."""
    loads = [Load(budget) for budget in budgets]
    device_of = [0] * len(costs)
    for index in dearest_first(costs):
        cost = costs[index]
        open_to = [d for d, load in enumerate(loads) if load.refusal(cost, latency) is None]
        if not open_to:
            return None
        device = min(
            open_to, key=lambda d: (loads[d].seconds + budgets[d].seconds(cost), -_room(loads[d]))
        )
        loads[device].take(index, cost)
        device_of[index] = device
    return tuple(device_of)


def exact(
    costs: Sequence[Cost],
    budgets: Sequence[Budget],
    latency: float | None = None,
    start: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...] | None, bool]:
    """The best placement by branch and bound, and whether the whole tree was searched.

    start is a placement that is known already. Where the tree was searched, None says that there is
    no placement at all.
    """
    search = _Search(costs, budgets, latency, start)
    search.down(0)
    return search.best, search.nodes <= MOST_NODES


class _Search:
    """Depth first, the dearest sub-model at the root; the branch that looks best goes first."""

    def __init__(
        self,
        costs: Sequence[Cost],
        budgets: Sequence[Budget],
        latency: float | None,
        start: tuple[int, ...] | None,
    ) -> None:
        self.costs, self.budgets, self.latency = costs, budgets, latency
        self.order = dearest_first(costs)
        self.loads = [Load(budget) for budget in budgets]
        self.device_of = [-1] * len(costs)
        self.best = start
        self.reached = math.inf if start is None else makespan(costs, budgets, start)
        self.nodes = 0
        self.speed = sum(budget.macs_per_s for budget in budgets)
        # Of the sub-models below each level: the slowest on its best device, and all their MACs.
        below = [[costs[i] for i in self.order[level + 1 :]] for level in range(len(costs))]
        self.alone = [
            max((min(b.seconds(cost) for b in budgets) for cost in rest), default=0.0)
            for rest in below
        ]
        self.macs = [sum(cost.macs for cost in rest) for rest in below]

    def down(self, level: int) -> None:
        """Try every place for the sub-model of this level and all below it."""
        if level == len(self.order):
            self.best = tuple(self.device_of)
            self.reached = max(load.seconds for load in self.loads)
            return
        index = self.order[level]
        cost = self.costs[index]
        for device in self._candidates(level):
            self.nodes += 1
            if self.nodes > MOST_NODES:
                return
            load = self.loads[device]
            if self._bound(level, device) >= self.reached:
                continue
            before = (load.memory, load.joules, load.seconds)
            load.take(index, cost)
            self.device_of[index] = device
            self.down(level + 1)
            load.holds.pop()
            load.memory, load.joules, load.seconds = before

    def _candidates(self, level: int) -> list[int]:
        """Devices that can take it, the soonest done first, and one of those that are alike."""
        index = self.order[level]
        cost = self.costs[index]
        # Of equal sub-models, the later is on the same device or on one behind it.
        first = 0
        if level and self.costs[self.order[level - 1]] == cost:
            first = self.device_of[self.order[level - 1]]
        seen: set[Budget] = set()
        found = []
        for device in range(first, len(self.loads)):
            load = self.loads[device]
            if load.refusal(cost, self.latency) is not None:
                continue
            budget = replace(load.budget, name="")
            if not load.holds:
                if budget in seen:
                    continue
                seen.add(budget)
            found.append(device)
        return sorted(found, key=lambda d: self.loads[d].seconds + self.budgets[d].seconds(cost))

    def _bound(self, level: int, device: int) -> float:
        """No placement below this branch is quicker than this (seconds)."""
        seconds = [load.seconds for load in self.loads]
        seconds[device] += self.budgets[device].seconds(self.costs[self.order[level]])
        spent = sum(b.macs_per_s * s for b, s in zip(self.budgets, seconds, strict=True))
        return max(*seconds, self.alone[level], (spent + self.macs[level]) / self.speed)


def dearest_first(costs: Sequence[Cost]) -> list[int]:
    """Indices by MACs, then bytes, descending; equal ones in their order and side by side."""
    return sorted(
        range(len(costs)), key=lambda i: (-costs[i].macs, -costs[i].memory, -costs[i].answer, i)
    )


def makespan(costs: Sequence[Cost], budgets: Sequence[Budget], device_of: Sequence[int]) -> float:
    """Seconds of the slowest device."""
    return max(load.seconds for load in loads_of(costs, budgets, device_of))


def _room(load: Load) -> float:
    return math.inf if load.budget.memory is None else load.budget.memory - load.memory


def _together(
    costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None, *, certain: bool
) -> Refusal:
    """Each fits somewhere, all together do not: find the limits without which they would."""
    binding = tuple(
        constraint
        for constraint in CONSTRAINTS
        if _fits(costs, *_without(constraint, budgets, latency))
    )
    if not binding:  # it takes more than one limit less
        binding = _in_force(budgets, latency)
    told = [_totals(constraint, costs, budgets, latency) for constraint in binding]
    text = f"each of the {len(costs)} sub-models fits on a device, all together do not: "
    return Refusal(binding, text + "; ".join(told), certain=certain)


def _fits(costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None) -> bool:
    if greedy(costs, budgets, latency) is not None:
        return True
    if len(costs) > EXACT_SUBMODELS or len(budgets) > EXACT_DEVICES:
        return False
    return exact(costs, budgets, latency)[0] is not None


def _without(
    constraint: Constraint, budgets: Sequence[Budget], latency: float | None
) -> tuple[list[Budget], float | None]:
    if constraint == "memory":
        return [replace(b, memory=None) for b in budgets], latency
    if constraint == "energy":
        return [replace(b, energy=None) for b in budgets], latency
    return list(budgets), None


def _in_force(budgets: Sequence[Budget], latency: float | None) -> tuple[Constraint, ...]:
    found: list[Constraint] = []
    if any(b.memory is not None for b in budgets):
        found.append("memory")
    if any(b.energy is not None for b in budgets):
        found.append("energy")
    if latency is not None:
        found.append("latency")
    return tuple(found)


def _totals(
    constraint: Constraint, costs: Sequence[Cost], budgets: Sequence[Budget], latency: float | None
) -> str:
    if constraint == "memory":
        needed = sum(cost.memory for cost in costs)
        given = ", ".join(
            f"{b.name} {'any' if b.memory is None else shown_bytes(b.memory)}" for b in budgets
        )
        return f"they take {shown_bytes(needed)}, the devices give {given}"
    if constraint == "energy":
        given = ", ".join(
            f"{b.name} {'any' if b.energy is None else f'{b.energy:.3g} J'}" for b in budgets
        )
        least = min(sum(b.joules(cost) for cost in costs) for b in budgets)
        return f"they take {least:.3g} J or more over all inferences, the devices give {given}"
    speed = sum(b.macs_per_s for b in budgets)
    macs = sum(cost.macs for cost in costs)
    return (
        f"they take {shown_seconds(macs / speed)} or more on all devices side by side, the limit "
        f"is {shown_seconds(latency or 0)} for each"
    )

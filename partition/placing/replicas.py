"""Copies of sub-models in the memory that is left over, the dearest to lose first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from partition.placing.budgets import Budget, Cost, loads_of


def replicas(
    costs: Sequence[Cost],
    budgets: Sequence[Budget],
    device_of: Sequence[int],
    lost: Sequence[float],
    *,
    most: int,
    latency: float | None = None,
) -> tuple[tuple[int, ...], ...]:
    """The devices that hold a copy of each sub-model, in the order they are to be asked.

    lost[i] is what the model loses without sub-model i (points of accuracy). The rule: the
    sub-model with the fewest copies, of these the one with the largest loss, goes on the device
    with the most memory left that does not hold it; until each has `most` copies or fits nowhere. A
    copy may have to do all of the work, so a device must have the energy and the time for it.
    """
    loads = loads_of(costs, budgets, device_of)
    copies: list[list[int]] = [[] for _ in costs]
    open_to = set(range(len(costs))) if most else set()
    while open_to:
        index = min(open_to, key=lambda i: (len(copies[i]), -lost[i], i))
        places = [
            d
            for d, load in enumerate(loads)
            if index not in load.holds and load.refusal(costs[index], latency) is None
        ]
        if not places:
            open_to.remove(index)
            continue

        def room(device: int) -> float:
            budget = loads[device].budget
            return math.inf if budget.memory is None else budget.memory - loads[device].memory

        device = max(places, key=lambda d: (room(d), -loads[d].seconds, -d))
        loads[device].take(index, costs[index])
        copies[index].append(device)
        if len(copies[index]) == most:
            open_to.remove(index)
    return tuple(tuple(places) for places in copies)

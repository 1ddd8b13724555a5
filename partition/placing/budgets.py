"""What sub-models cost and what devices give: the numbers that a placement is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from partition.cutting.geometry import Geometry
from partition.placing.cluster_file import ClusterFile
from partition.placing.quantities import shown_bytes, shown_seconds

Constraint = Literal["memory", "energy", "latency", "total_size"]
CONSTRAINTS: tuple[Constraint, ...] = ("memory", "energy", "latency")

# Sums of floats in another order differ in their last bits, which must not decide what fits.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Cost:
    """What one sub-model takes of any device: bytes of weights, MACs and answer bytes a picture."""

    memory: int
    macs: int
    answer: int


@dataclass(frozen=True)
class Budget:
    """What one device gives. None is no limit.

    macs_per_s is its speed, memory is bytes, energy is joules and joules_per_mac what one MAC takes
    of them over all the inferences that the energy is to last for, link is bit/s.
    """

    name: str
    macs_per_s: float
    memory: int | None = None
    energy: float | None = None
    joules_per_mac: float = 0.0
    link: float | None = None

    def seconds(self, cost: Cost) -> float:
        """Time of one picture: compute, then the answer's way over the link."""
        sent = 8 * cost.answer / self.link if self.link else 0.0
        return cost.macs / self.macs_per_s + sent

    def joules(self, cost: Cost) -> float:
        """Energy over all inferences."""
        return cost.macs * self.joules_per_mac


@dataclass
class Load:
    """What a device has taken on so far."""

    budget: Budget
    memory: int = 0
    joules: float = 0.0
    seconds: float = 0.0
    holds: list[int] = field(default_factory=list)

    def refusal(self, cost: Cost, latency: float | None) -> Constraint | None:
        """The first constraint that one more sub-model would break; latency is seconds."""
        budget = self.budget
        if budget.memory is not None and self.memory + cost.memory > budget.memory:
            return "memory"
        if budget.energy is not None and _above(self.joules + budget.joules(cost), budget.energy):
            return "energy"
        if latency is not None and _above(self.seconds + budget.seconds(cost), latency):
            return "latency"
        return None

    def take(self, index: int, cost: Cost) -> None:
        """Put sub-model `index` on the device."""
        self.memory += cost.memory
        self.joules += self.budget.joules(cost)
        self.seconds += self.budget.seconds(cost)
        self.holds.append(index)


def loads_of(
    costs: Sequence[Cost], budgets: Sequence[Budget], device_of: Sequence[int]
) -> list[Load]:
    """The load of each device, where sub-model i is on device device_of[i]."""
    loads = [Load(budget) for budget in budgets]
    for index, device in enumerate(device_of):
        loads[device].take(index, costs[index])
    return loads


def cost_of(geometry: Geometry, answer_values: int, extra_bytes: int = 0) -> Cost:
    """The cost of a sub-model whose answer is that many float32 numbers.

    extra_bytes is what its artefact was found to take beyond the weights.
    """
    return Cost(geometry.bytes + extra_bytes, geometry.macs, 4 * answer_values)


def budgets_of(cluster: ClusterFile, macs_per_s: Sequence[float]) -> list[Budget]:
    """The devices of a cluster, with the speed that was given or measured for each."""
    inferences = cluster.settings.inferences
    return [
        Budget(
            name=device.name,
            macs_per_s=speed,
            memory=device.memory,
            energy=device.energy,
            joules_per_mac=(device.energy_per_mac or 0.0) * inferences,
            link=device.link,
        )
        for device, speed in zip(cluster.devices, macs_per_s, strict=True)
    ]


def refused_alone(
    index: int, cost: Cost, budgets: Sequence[Budget], latency: float | None
) -> tuple[Constraint, str] | None:
    """Why no device takes this sub-model even when it is empty; None where one does.

    The constraint is that of the device that comes nearest, the text has its numbers.
    """
    refusals = [Load(budget).refusal(cost, latency) for budget in budgets]
    if None in refusals:
        return None
    what = f"sub-model {index}"
    # Past memory is nearer than not past it, past energy nearer still.
    for constraint in reversed(CONSTRAINTS):
        blocked = [b for b, why in zip(budgets, refusals, strict=True) if why == constraint]
        if not blocked:
            continue
        if constraint == "memory":
            best = max(blocked, key=lambda b: b.memory or 0)
            return constraint, (
                f"{what} takes {shown_bytes(cost.memory)}, the device with the most memory that "
                f"could take it, {best.name}, gives {shown_bytes(best.memory or 0)}"
            )
        if constraint == "energy":
            best = max(blocked, key=lambda b: (b.energy or 0) / b.joules(cost))
            return constraint, (
                f"{what} takes {best.joules(cost):.3g} J over all inferences on {best.name}, which "
                f"gives {best.energy:.3g} J"
            )
        best = min(blocked, key=lambda b: b.seconds(cost))
        return constraint, (
            f"{what} takes {shown_seconds(best.seconds(cost))} on {best.name}, the fastest device "
            f"that could take it, and the limit is {shown_seconds(latency or 0)}"
        )
    raise AssertionError("every refusal is one of the constraints")


def _above(value: float, limit: float) -> bool:
    return value > limit * (1 + ROUNDING)

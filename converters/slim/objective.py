"""What a search gives accuracy away for, and when it has got enough: its two objectives.

The Mobile Efficiency Score is EfficientFormerV2's (arXiv 2212.08059): Score * prod (M/U)^-alpha
over size and latency. The exponent must be negative for a higher score to be better, though it is
also found printed without the sign. The constants could not be verified: they are fields here, with
values that suit a network of 3 M parameters and 1 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from converters.slim.errors import SlimError


@dataclass(frozen=True)
class Standing:
    """Where a network stands: top-1 in percent, milliseconds, millions of parameters."""

    accuracy: float
    latency_ms: float
    size_m: float


class Objective(Protocol):
    """What a step of the search is worth."""

    def gain(self, now: Standing, then: Standing) -> float:
        """What a step from `now` to `then` brings; above 0 for a step that brings anything."""
        ...

    def reached(self, standing: Standing) -> bool:
        """Whether the search may stop there."""
        ...

    def price(self, now: Standing, then: Standing) -> float:
        """Accuracy lost for what is gained, as `price_of`: the least is the best step."""
        ...


def price_of(lost: float, gained: float) -> float:
    """Accuracy lost (percent) per unit gained; infinite where nothing is gained.

    A step that loses no accuracy is priced at or below 0, and the lower the more it gains: a
    quotient would prefer, of two steps that win the same accuracy, the one that gains less. Among
    steps of one price the larger gain is the better.
    """
    if gained <= 0:
        return math.inf
    return lost / gained if lost > 0 else lost * gained


@dataclass(frozen=True)
class LatencyObjective:
    """Accuracy lost per millisecond saved, until the latency is `target_ms` or less.

    Raises SlimError for a target that is no positive number.
    """

    target_ms: float

    def __post_init__(self) -> None:
        _check_positive("target latency in ms", self.target_ms)

    def gain(self, now: Standing, then: Standing) -> float:
        """Milliseconds saved."""
        return now.latency_ms - then.latency_ms

    def reached(self, standing: Standing) -> bool:
        """Whether the target is met."""
        return standing.latency_ms <= self.target_ms

    def price(self, now: Standing, then: Standing) -> float:
        """Percent of top-1 lost per millisecond saved, as `price_of`."""
        return price_of(now.accuracy - then.accuracy, self.gain(now, then))


@dataclass(frozen=True)
class MES:
    """Accuracy lost per Mobile Efficiency Score gained, until size and latency are both reached.

    size_m: the target in millions of parameters; latency_ms: the target in milliseconds. The alphas
    weigh both, the units are the size and latency of a network whose score is `score`. Raises
    SlimError for targets, units or a score that are no positive numbers, and alphas below 0.
    """

    size_m: float
    latency_ms: float
    alpha_size: float = 0.5
    alpha_latency: float = 1.0
    unit_size_m: float = 3.0
    unit_latency_ms: float = 1.0
    score: float = 100.0

    def __post_init__(self) -> None:
        _check_positive("target size in M", self.size_m)
        _check_positive("target latency in ms", self.latency_ms)
        _check_positive("unit of size in M", self.unit_size_m)
        _check_positive("unit of latency in ms", self.unit_latency_ms)
        _check_positive("score of the unit network", self.score)
        for name, alpha in (("size", self.alpha_size), ("latency", self.alpha_latency)):
            if not (math.isfinite(alpha) and alpha >= 0):
                raise SlimError(f"the alpha of {name} must be 0 or more, got {alpha:g}")

    def of(self, standing: Standing) -> float:
        """The score of a network; higher is better."""
        size = standing.size_m / self.unit_size_m
        latency = standing.latency_ms / self.unit_latency_ms
        return float(self.score * size**-self.alpha_size * latency**-self.alpha_latency)

    def gain(self, now: Standing, then: Standing) -> float:
        """Score gained."""
        return self.of(then) - self.of(now)

    def reached(self, standing: Standing) -> bool:
        """Whether both targets are met."""
        return standing.size_m <= self.size_m and standing.latency_ms <= self.latency_ms

    def price(self, now: Standing, then: Standing) -> float:
        """Percent of top-1 lost per point of the score gained, as `price_of`."""
        return price_of(now.accuracy - then.accuracy, self.gain(now, then))


def _check_positive(what: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SlimError(f"the {what} must be above 0, got {value:g}")

"""What a search is to be better than: uniform scaling, and as many random networks as it scored.

Both inherit from the same source and are settled and scored alike, in the same latency band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.slim.candidates import Clock, Score, Scorer
from converters.slim.families.base import Family, Subnet
from converters.slim.search import LOWEST
from edgevit.models.shapes import Shape

FACTOR_LOW = 0.05
HALVINGS = 9  # of the range of factors
CURVE = 5  # networks between the whole one and the end
ROUGH = 0.25  # how far off a rough latency may be for a network to be looked at in earnest
DRAWS = 400  # for each random network that is wanted
CHUNK = 16


@dataclass(frozen=True)
class Other:
    """A network that the search did not go through. factor is None for a random one."""

    subnet: Subnet
    ms: float
    score: Score
    factor: float | None = None


@dataclass(frozen=True)
class Band:
    """Predicted latencies, in ms, that are as good as the end's."""

    low: float
    high: float

    def has(self, ms: float) -> bool:
        return self.low <= ms <= self.high


def band_of(aim: float, end: float) -> Band:
    """The band under what was aimed at, which the end's latency lies in too."""
    return Band(min(LOWEST * aim, end), max(aim, end))


def uniform(family: Family, shape: Shape, band: Band, clock: Clock, scorer: Scorer) -> list[Other]:
    """Uniformly scaled networks, the widest first: a few on the way, the last at the end's latency.

    The last is the widest whose predicted latency is not above the band; how far below it lies
    depends on the grid of the widths, and its latency tells. None where all are above.
    """
    low, high = FACTOR_LOW, 1.0
    times: dict[float, float] = {}

    def ms_at(factor: float) -> float:
        if factor not in times:
            times[factor] = clock.predict([family.scaled(shape, factor).shape])[0]
        return times[factor]

    if ms_at(low) > band.high:
        return []
    if ms_at(high) <= band.high:
        low = high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ms_at(middle) <= band.high else (low, middle)
    factors = [*np.linspace(1.0, low, CURVE + 2)[1:-1].tolist(), low]
    networks = {family.scaled(shape, factor): factor for factor in factors}
    subnets = list(networks)
    scores = scorer.score(subnets, "uniform scaling")
    return [
        Other(subnet, ms_at(networks[subnet]), score, networks[subnet])
        for subnet, score in zip(subnets, scores, strict=True)
    ]


def random_search(
    family: Family, shape: Shape, count: int, band: Band, clock: Clock, scorer: Scorer, seed: int
) -> list[Other]:
    """Up to `count` different random networks in the band, in the order in which they were drawn.

    There are fewer where DRAWS draws for each did not give as many.
    """
    rng = np.random.default_rng([seed, count])
    found: dict[Subnet, float] = {}
    seen: set[Subnet] = set()
    wide = Band(band.low / (1 + ROUGH), band.high * (1 + ROUGH))
    waiting: list[Subnet] = []
    for draw in range(DRAWS * count):
        subnet = family.random(shape, rng)
        if subnet not in seen and wide.has(clock.rough(subnet.shape)):
            waiting.append(subnet)
        seen.add(subnet)
        if len(waiting) == CHUNK or draw == DRAWS * count - 1:
            times = clock.predict([each.shape for each in waiting])
            found |= {s: ms for s, ms in zip(waiting, times, strict=True) if band.has(ms)}
            waiting = []
            if len(found) >= count:
                break
    subnets = list(found)[:count]
    if not subnets:
        return []
    scores = scorer.score(subnets, "random networks")
    return [Other(s, found[s], score) for s, score in zip(subnets, scores, strict=True)]


def best_of(others: list[Other]) -> Other | None:
    """The most right answers, then the least loss."""
    return max(others, key=lambda other: (other.score.top1, -other.score.loss), default=None)

"""From the blocks of an interleaved measurement to one number, and whether it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.slim.cost.meters import Timing

TOLERANCE = 0.1
"""How far the halves of a part's measurement may be apart, as a fraction of its latency."""

FLOOR = 0.02
"""The same as a fraction of the longer probe's latency, shared by its copies of the part.

What is much cheaper than the network around it cannot be told to ten percent, and need not be.
"""

FLOOR_MS = 0.003
"""The same as a time: a shared machine does not keep a few microseconds steady for a second.

What is left of it is in the entry's spread, and in the error that the fit finds.
"""

TOLERANCE_WHOLE = 0.03
"""How far the halves of a whole network's measurement may be apart, as a fraction."""


@dataclass(frozen=True)
class Estimate:
    """A latency, and the two estimates that the halves of its blocks give, all in milliseconds.

    sound says that both are positive and as near to each other as is asked.
    """

    ms: float
    halves_ms: tuple[float, float]
    sound: bool

    @property
    def spread_ms(self) -> float:
        """How far the halves are apart."""
        return abs(self.halves_ms[0] - self.halves_ms[1])


def of_part(short: Timing, long: Timing, times: int) -> Estimate:
    """The latency of what `long` has `times` more of than `short`, both from one measurement.

    Block by block, since a machine that slows down slows both of a pair: the median of the blocks'
    differences.
    """
    blocks = (long.blocks_ms - short.blocks_ms) / times
    floor = max(FLOOR * float(np.median(long.blocks_ms)) / times, FLOOR_MS)
    return _estimate(blocks, float(np.median(blocks)), TOLERANCE, floor)


def of_whole(timing: Timing) -> Estimate:
    """The latency of a whole network: the median of its runs, as `edgevit profile` gives it."""
    return _estimate(timing.blocks_ms, timing.ms, TOLERANCE_WHOLE, 0.0)


def _estimate(blocks: np.ndarray, ms: float, tolerance: float, floor: float) -> Estimate:
    middle = max(1, len(blocks) // 2)
    first, second = float(np.median(blocks[:middle])), float(np.median(blocks[-middle:]))
    near = abs(first - second) <= max(tolerance * ms, floor)
    return Estimate(ms, (first, second), near and min(first, second, ms) > 0)

"""Who is fastest in one interleaved run, and by what ratio with what spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from runtime.run_record import Measurement, RunRecord


@dataclass(frozen=True)
class Ratio:
    """median(a)/median(b) and its 5th and 95th percentile over the blocks, where there are some."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """True where even the low end says that `a` takes longer than `b`."""
        return self.low is not None and self.low > 1

    @property
    def spread(self) -> str | None:
        """The spread for a reader, or None where it was not measured."""
        if self.low is None or self.high is None:
            return None
        return f"{times(self.low)}–{times(self.high)}"


def times(ratio: float) -> str:
    """A ratio with two decimals, with three figures from 10 on."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def ratio_of(record: RunRecord, a: Measurement, b: Measurement) -> Ratio:
    """Ratio of the medians of `a` over `b`, both of this record.

    The record's own comparison is taken in either direction. Where it has none for this pair, the
    same definition is applied to the raw blocks; with fewer than two shared blocks there is no
    spread.
    """
    for c in record.comparisons:
        if (c.a, c.b) == (a.id, b.id):
            return Ratio(c.ratio, c.low, c.high)
        if (c.a, c.b) == (b.id, a.id) and min(c.ratio, c.low, c.high) > 0:
            return Ratio(1 / c.ratio, 1 / c.high, 1 / c.low)
    value = a.latency.p50 / b.latency.p50
    pairs = list(zip(a.samples_ms, b.samples_ms, strict=False))
    blocks = [median(x) / median(y) for x, y in pairs if x and y and median(y) > 0]
    if len(blocks) < 2:
        return Ratio(value)
    low, high = np.percentile(blocks, [5, 95])
    return Ratio(value, float(low), float(high))


def failed(m: Measurement) -> bool:
    """True where the artefact was run and its numbers were wrong."""
    return m.verification is not None and m.verification.status == "failed"


def fastest(measurements: Sequence[Measurement]) -> Measurement | None:
    """The lowest median; an artefact with wrong numbers cannot win."""
    return min(
        (m for m in measurements if not failed(m)), key=lambda m: m.latency.p50, default=None
    )

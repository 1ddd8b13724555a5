"""Statistics of raw samples, and the comparison of interleaved runs."""

from __future__ import annotations

import numpy as np

from runtime.run_record import Comparison, LatencyStats, Measurement


def latency_stats(samples_ms: list[list[float]]) -> LatencyStats:
    """Statistics over all the samples of all the blocks; percentiles interpolate linearly."""
    ms = np.concatenate([np.asarray(block, np.float64) for block in samples_ms])
    p50, p90, p95, p99 = (float(p) for p in np.percentile(ms, [50, 90, 95, 99]))
    return LatencyStats(
        n=ms.size,
        mean=float(ms.mean()),
        std=float(ms.std(ddof=1)) if ms.size > 1 else 0.0,
        min=float(ms.min()),
        max=float(ms.max()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
    )


def ratio(a: Measurement, b: Measurement) -> Comparison:
    """Median of `a` over median of `b`; block over block of one interleaved run for the spread."""
    blocks = zip(a.samples_ms, b.samples_ms, strict=True)
    ratios = np.array([np.median(one) / np.median(other) for one, other in blocks])
    low, high = (float(p) for p in np.percentile(ratios, [5, 95]))
    return Comparison(a=a.id, b=b.id, ratio=a.latency.p50 / b.latency.p50, low=low, high=high)


def compare(measurements: list[Measurement]) -> list[Comparison]:
    """Each measurement over the one with the smallest median."""
    if not measurements:
        return []
    by_median = sorted(measurements, key=lambda m: m.latency.p50)
    return [ratio(m, by_median[0]) for m in by_median[1:]]

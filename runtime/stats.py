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


def compare(measurements: list[Measurement]) -> list[Comparison]:
    """Each measurement over the one with the smallest median; block b against block b."""
    if not measurements:
        return []
    fastest = min(measurements, key=lambda m: m.latency.p50)
    base = np.array([np.median(block) for block in fastest.samples_ms])
    result = []
    for m in sorted(measurements, key=lambda m: m.latency.p50):
        if m is fastest:
            continue
        ratios = np.array([np.median(block) for block in m.samples_ms]) / base
        low, high = (float(p) for p in np.percentile(ratios, [5, 95]))
        ratio = m.latency.p50 / fastest.latency.p50
        result.append(Comparison(a=m.id, b=fastest.id, ratio=ratio, low=low, high=high))
    return result

"""From a bench of a cluster to plain words: how long, where the time goes, who holds it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean, median

from edgevit.reports.present import listing, milliseconds, plural, scientific
from edgevit.reports.ratios import times
from edgevit.reports.verdict import BUSY, DRIFT, FEW_SAMPLES, LONG_TAIL, TOPICS, Finding
from partition.cluster.bench_record import (
    CLIENT,
    OF_THE_STRAGGLER,
    AnswerGroup,
    ClusterRun,
    ClusterSample,
    WorkerRun,
)

SUM_WITHIN = 0.05
"""How far the stages may be from the end-to-end time, as a share of it."""
WARMER = 5.0
"""Degrees Celsius by which a device grew warmer that are worth a word."""
LATER = 20
"""Samples at either end of a run that are compared for a drift."""
STAGE_NAMES = {
    CLIENT: "client ↔ coordinator",
    "decode": "decode",
    "queue": "queue",
    "network": "network",
    "worker_queue": "worker queue",
    "compute": "compute",
    "wait": "wait",
    "fuse": "fuse",
}


def stage_name(stage: str) -> str:
    """A stage as a reader sees it."""
    return STAGE_NAMES.get(stage, stage.replace("_", " "))


def main_group(run: ClusterRun) -> AnswerGroup:
    """The whole answers; the degraded ones where there is no other."""
    return run.groups[0]


def straggler_of(run: ClusterRun) -> WorkerRun | None:
    """Who was waited for longest in most of the whole answers; None where there are none."""
    worst = max(run.workers, key=lambda worker: worker.straggler, default=None)
    return worst if worst is not None and worst.straggler else None


def cluster_findings(run: ClusterRun) -> list[Finding]:
    """Everything a reader must know, most important first."""
    found = [
        *_degraded(run),
        *_errors(run),
        *_speed(run),
        *_straggler(run),
        *_sum(run),
        *_prediction(run),
        *_care(run),
        *(Finding("warn", note) for note in run.notes),
    ]
    return sorted(found, key=lambda f: (f.level != "bad", TOPICS.index(f.topic), f.level == "info"))


def _samples(run: ClusterRun, group: AnswerGroup) -> list[ClusterSample]:
    return [sample for sample in run.samples if sample.kind == group.kind]


def _degraded(run: ClusterRun) -> Iterator[Finding]:
    group = run.group("degraded")
    if group is None:
        return
    lost = Counter(name for sample in run.samples for name in sample.missing)
    who = listing([f"{name} in {count}" for name, count in lost.most_common()])
    if run.group("whole") is None:
        yield Finding("bad", f"Every answer was degraded; without {who}. No whole one is measured.")
        return
    count, total = group.latency.n, len(run.samples)
    yield Finding(
        "warn",
        f"{count} of {plural(total, 'answer')} {'was' if count == 1 else 'were'} degraded: without "
        f"{who}. They have numbers of their own and are in no other.",
    )


def _errors(run: ClusterRun) -> Iterator[Finding]:
    if not run.failed:
        return
    sent = len(run.samples) + run.failed
    reasons = listing([f"{e.status} ({e.count})" for e in run.errors])
    yield Finding("bad", f"{run.failed} of {plural(sent, 'request')} got no answer: {reasons}.")


def _speed(run: ClusterRun) -> Iterator[Finding]:
    group = main_group(run)
    stats = group.latency
    yield Finding(
        "good",
        f"A {group.kind} answer takes {milliseconds(stats.p50)} (median; p95 "
        f"{milliseconds(stats.p95)}, p99 {milliseconds(stats.p99)}), and {group.per_s:.3g} come a "
        f"second with {plural(run.in_flight, 'request')} under way at once.",
        "speed",
    )


def _straggler(run: ClusterRun) -> Iterator[Finding]:
    """One sentence: who, how often, and what of it takes longest."""
    worst, whole = straggler_of(run), run.group("whole")
    if worst is None or whole is None:
        return
    own = [s for s in run.samples if s.kind == "whole" and s.straggler == worst.name]
    places = [run.stages.index(stage) for stage in OF_THE_STRAGGLER]
    means = [fmean(sample.stages_ms[place] for sample in own) for place in places]
    most = max(range(len(means)), key=means.__getitem__)
    alone = len(run.workers) == 1
    share = f"last in {worst.straggler} of {plural(whole.latency.n, 'whole answer')}"
    yield Finding(
        "info",
        f"The straggler is {worst.name}: "
        + ("it is the only worker" if alone else share)
        + (f" ({_percent(worst.straggler / whole.latency.n)})" if not alone else "")
        + f", and then most of its {milliseconds(sum(means))} is "
        f"{stage_name(OF_THE_STRAGGLER[most])} ({_percent(means[most] / sum(means))}).",
        "speed",
    )


def _sum(run: ClusterRun) -> Iterator[Finding]:
    group = main_group(run)
    mean = group.latency.mean
    summed, off = mean - group.unaccounted_ms, abs(group.unaccounted_ms) / mean
    text = (
        f"The means of the stages sum to {milliseconds(summed)} of {milliseconds(mean)} measured "
        f"end to end: {_percent(summed / mean)}"
    )
    if off <= SUM_WITHIN:
        yield Finding("good", f"{text}.", "verification")
    else:
        yield Finding("warn", f"{text}, more than 5 % off; read the split with care.", "care")


def _prediction(run: ClusterRun) -> Iterator[Finding]:
    group = main_group(run)
    if run.predicted_ms is None:
        return
    measured = fan_out_p50(run, group)
    yield Finding(
        "info",
        f"The plan predicted {milliseconds(run.predicted_ms)} for its slowest device; the slowest "
        f"sub-model (network, worker queue, compute) took {milliseconds(measured)} (median), "
        f"{_ratio(measured / run.predicted_ms)}× that.",
        "across",
    )


def _percent(share: float) -> str:
    """A share as per cent; unlike a score it may be above 100."""
    return f"{100 * share:.1f} %"


def _ratio(value: float) -> str:
    return times(value) if value >= 0.01 else scientific(value)


def fan_out_p50(run: ClusterRun, group: AnswerGroup) -> float:
    """The median time of the sub-model that answered last, milliseconds."""
    places = [run.stages.index(stage) for stage in OF_THE_STRAGGLER]
    return median(sum(s.stages_ms[place] for place in places) for s in _samples(run, group))


def _care(run: ClusterRun) -> Iterator[Finding]:
    group = main_group(run)
    stats, samples = group.latency, _samples(run, group)
    if stats.n < FEW_SAMPLES:
        yield Finding(
            "warn", f"There are only {plural(stats.n, 'sample')}: p95 and p99 say little."
        )
    elif stats.p99 > LONG_TAIL * stats.p50:
        yield Finding(
            "warn",
            f"A long tail: p99 is {times(stats.p99 / stats.p50)}× the median. Something else had a "
            "processor or the network.",
        )
    if len(samples) >= 2 * LATER:
        first = median(sample.ms for sample in samples[:LATER])
        last = median(sample.ms for sample in samples[-LATER:])
        if abs(last / first - 1) > DRIFT:
            yield Finding(
                "warn",
                f"The latency drifted from {milliseconds(first)} to {milliseconds(last)} between "
                f"the first and the last {LATER} samples.",
            )
    for worker in run.workers:
        if worker.usable is False:
            reason = worker.reason.rstrip(".") or "it is being asked whether it lives"
            yield Finding("warn", f"{worker.name} was out at the end: {reason}.")
    yield from _machines(run)


def _machines(run: ClusterRun) -> Iterator[Finding]:
    load, cores = run.environment.load_average, run.environment.cores_logical
    if load is not None and cores and load / cores > BUSY:
        yield Finding(
            "warn",
            f"The machine that asked was busy at the start: load average {load:.2f} on "
            f"{plural(cores, 'core')}.",
        )
    for device in run.devices:
        before, after = device.temperature_before_c, device.temperature_after_c
        if before is not None and after is not None and after - before >= WARMER:
            yield Finding("warn", f"{device.name} warmed from {before:.0f} to {after:.0f} °C.")
    silent = [device.name for device in run.devices if device.environment is None]
    if silent:
        yield Finding("info", f"Nothing is known of the hardware of {listing(silent)}.", "absent")

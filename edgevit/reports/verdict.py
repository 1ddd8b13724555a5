"""From run records to plain words: what is fastest, what is proven, what to be careful about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from edgevit.reports.present import (
    engine_name,
    fraction,
    labels,
    listing,
    milliseconds,
    models_of,
    outside_ops,
    page_names,
    plural,
    record_names,
    scientific,
    verification_mark,
)
from edgevit.reports.ratios import Ratio, failed, fastest, ratio_of, times
from runtime.run_record import Measurement, RunRecord

Level = Literal["good", "info", "warn", "bad"]
Topic = Literal["speed", "across", "verification", "care", "absent"]
TOPICS: tuple[Topic, ...] = ("speed", "across", "verification", "care", "absent")

FEW_SAMPLES = 30
"""Below this a 95th percentile rests on one or two samples."""
DRIFT = 0.10
"""Change of the block median from the first block to the last that is worth a warning."""
LONG_TAIL = 1.5
"""p99 over p50 above this: something else had the processor."""
BUSY = 0.5
"""Load average per core at the start above which other work disturbs the run."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two for a reader. `bad`: do not use; `warn`: read with care."""

    level: Level
    text: str
    topic: Topic = "care"


@dataclass(frozen=True)
class Absent:
    """A device that gave no record, or none of one bundle, and why."""

    place: str
    reason: str


def findings(records: Sequence[RunRecord], absent: Sequence[Absent] = ()) -> list[Finding]:
    """Everything a reader must know, most important first.

    Failures lead, then speed, then verification, then warnings, then remarks. Artefacts with
    wrong numbers never count as fastest. Ratios with a spread come from within one record only.
    """
    found = [
        *_merged(records, _speed, "On {}: "),
        *_across(records),
        *_verification(records),
        *_merged(records, _care, "{}: "),
        *_merged(records, _absent, "{}: "),
        *(
            Finding("warn", f"{a.place} was not profiled: {a.reason.rstrip('.')}.", "absent")
            for a in absent
        ),
    ]
    return sorted(found, key=lambda f: (f.level != "bad", TOPICS.index(f.topic), f.level == "info"))


def _merged(
    records: Sequence[RunRecord], rule: Callable[[RunRecord], Iterator[Finding]], prefix: str
) -> Iterator[Finding]:
    """What a rule finds in each record; said once, with the places, where records agree."""
    where: dict[Finding, list[str]] = {}
    for record, place in zip(records, record_names(records), strict=True):
        for finding in rule(record):
            where.setdefault(finding, []).append(place)
    for finding, places in where.items():
        everywhere = len(places) == len(records)
        start = "" if everywhere else prefix.format(listing(places))
        yield replace(finding, text=start + finding.text)


def _care(record: RunRecord) -> Iterator[Finding]:
    yield from _likeness(record)
    for m, name in zip(record.measurements, labels(record), strict=True):
        yield from _steadiness(m, name)
    yield from _device(record)
    for m, name in zip(record.measurements, labels(record), strict=True):
        yield from _delegation(m, name)


def _speed(record: RunRecord) -> Iterator[Finding]:
    """One race; with several models, one for each and one between their best artefacts."""
    if not record.measurements:
        yield Finding("bad", "Nothing was measured.", "speed")
        return
    called = {m.id: n for m, n in zip(record.measurements, labels(record), strict=True)}
    runners = [m for m in record.measurements if not failed(m)]
    if not runners:
        yield Finding("bad", "No artefact gives the numbers of torch, so none is fastest.", "speed")
        return
    by_model: dict[str | None, list[Measurement]] = {}
    for m in runners:
        by_model.setdefault(m.model, []).append(m)
    groups = list(by_model.items())
    if len(groups) > 1 and any(len(group) > 1 for _, group in groups):
        best = [winner for _, group in groups if (winner := fastest(group))]
        yield _race(record, best, called, "Between the models, ")
        for model, group in groups:
            yield _race(record, group, called, f"{model or 'Unnamed model'}: ")
    else:
        yield _race(record, runners, called, "")


def _race(
    record: RunRecord, runners: Sequence[Measurement], called: dict[str, str], prefix: str
) -> Finding:
    ranked = sorted(runners, key=lambda m: m.latency.p50)
    first, rest = ranked[0], ranked[1:]
    name, p50 = called[first.id], milliseconds(first.latency.p50)
    if not rest:
        p90 = milliseconds(first.latency.p90)
        text = f"{prefix}{name} takes {p50} (median; p90 {p90}). There is nothing to rank it with."
        return Finding("info", text, "speed")
    ratios = [(called[m.id], ratio_of(record, m, first)) for m in rest]
    level = [(n, r) for n, r in ratios if r.spread and not r.clear]
    behind = [pair for pair in ratios if pair not in level]
    tail = _behind(behind)
    if level:
        shown = [
            f"{times(r.value)}× ({r.spread})" + (f" for {n}" if len(level) > 1 else "")
            for n, r in level
        ]
        text = (
            f"{prefix}{listing([name, *(n for n, _ in level)])} cannot be told apart in this run: "
            f"the lowest median is {p50}, the ratio {listing(shown)}.{tail}"
        )
        return Finding("info", text, "speed")
    text = f"{prefix}{name} is the fastest here: {p50} median.{tail}"
    if any(r.spread is None for _, r in ratios):
        return Finding("info", f"{text} The spread of the ratio was not measured.", "speed")
    return Finding("good", text, "speed")


def _behind(behind: Sequence[tuple[str, Ratio]]) -> str:
    """How much longer the slower ones take; more than three are summed up."""
    said = [
        f"{n} takes {times(r.value)}× as long" + (f" ({r.spread})" if r.spread else "")
        for n, r in behind
    ]
    if len(said) > 3:
        low, high = times(behind[1][1].value), times(behind[-1][1].value)
        said = [said[0], f"the other {len(said) - 1} take {low} to {high}×"]
    return f" {'; '.join(said)}." if said else ""


def _across(records: Sequence[RunRecord]) -> Iterator[Finding]:
    best = [
        (m, own[record.measurements.index(m)])
        for record, own in zip(records, page_names(records), strict=True)
        if (m := fastest(record.measurements)) is not None
    ]
    if len(best) < 2:
        return
    best.sort(key=lambda pair: pair[0].latency.p50)
    (first, name), (last, last_name) = best[0], best[-1]
    ratio = times(last.latency.p50 / first.latency.p50)
    every = "both" if len(records) == 2 else f"all {len(records)}"
    yield Finding(
        "info",
        f"Over {every} records the lowest median is {milliseconds(first.latency.p50)}, {name}; the "
        f"best of the slowest record, {last_name}, is {ratio}× that. Ratios between records were "
        "not interleaved: they have no spread, and the state of the devices is in them.",
        "across",
    )


def _verification(records: Sequence[RunRecord]) -> Iterator[Finding]:
    pairs = [
        (m, name)
        for record, own in zip(records, page_names(records), strict=True)
        for m, name in zip(record.measurements, own, strict=True)
    ]
    marks = [(m, name, verification_mark(m)) for m, name in pairs]
    for m, name, mark in marks:
        if mark.kind == "failed":
            yield Finding("bad", _failure(m, name), "verification")
    passed = [m for m, _, mark in marks if mark.kind == "passed"]
    if passed:
        every = len(passed) == len(marks)
        if every:
            head = (
                f"All {len(marks)} artefacts match torch"
                if len(marks) > 1
                else "The artefact matches torch"
            )
        else:
            head = f"{len(passed)} of {len(marks)} artefacts match torch"
        yield Finding("good" if every else "info", f"{head}{_closeness(passed)}.", "verification")
    for kind, words in (
        ("simulated", "checked by an interpreter only, not by the engine itself"),
        ("not_executed", "not executed when checked"),
        ("unverified", "not compared with torch"),
    ):
        these = [(name, mark) for _, name, mark in marks if mark.kind == kind]
        if not these:
            continue
        reasons = dict.fromkeys(mark.detail for _, mark in these) if kind == "not_executed" else {}
        why = f" ({'; '.join(reasons)})" if reasons else ""
        who = listing([name for name, _ in these])
        verb = "were" if len(these) > 1 else "was"
        text = f"{who} {verb} {words}{why}: the numbers are unproven."
        yield Finding("warn", text, "verification")


def _failure(m: Measurement, name: str) -> str:
    v = m.verification
    facts = []
    if v is not None and v.error_over_spread is not None:
        facts.append(f"error/spread {scientific(v.error_over_spread)}")
    if v is not None and v.top1_agreement is not None:
        facts.append(f"top-1 agreement {fraction(v.top1_agreement)}")
    why = (v.reason if v is not None else None) or ", ".join(facts) or "verification failed"
    where = f" First to diverge: {v.first_divergence}." if v and v.first_divergence else ""
    return (
        f"{name} gives WRONG NUMBERS, measured against torch: {why.rstrip('.')}.{where} "
        "Its speed counts for nothing."
    )


def _closeness(passed: Sequence[Measurement]) -> str:
    """The worst of the passing numbers: error, and cosine and top-1 where not perfect."""
    facts = []
    v = [m.verification for m in passed if m.verification is not None]
    errors = [x.error_over_spread for x in v if x.error_over_spread is not None]
    if errors:
        facts.append(f"largest error/spread {scientific(max(errors))}")
    cosines = [x.cosine_centred for x in v if x.cosine_centred is not None]
    if cosines and min(cosines) < 0.999999:
        facts.append(f"lowest cosine {min(cosines):.5f}")
    agreement = [x.top1_agreement for x in v if x.top1_agreement is not None]
    if agreement and min(agreement) < 1:
        facts.append(f"lowest top-1 agreement {fraction(min(agreement))}")
    inputs = min((x.inputs for x in v if x.inputs), default=0)
    if inputs:
        facts.append(f"at least {plural(inputs, 'input')} each")
    return f": {', '.join(facts)}" if facts else ""


def _delegation(m: Measurement, name: str) -> Iterator[Finding]:
    d = m.delegation
    if d is None:
        return
    nodes = ""
    if d.nodes_delegated is not None and d.nodes_total is not None:
        nodes = f" ({d.nodes_delegated} of {d.nodes_total} nodes)"
    outside = f"; ops outside: {outside_ops(d)}" if d.outside else ""
    if d.partitions == 0:
        yield Finding("warn", f"{name}: {d.delegate} took nothing{nodes}{outside}.")
    elif d.partitions > 1:
        text = f"{name} runs in {d.partitions} {d.delegate} partitions{nodes}{outside}."
        yield Finding("warn", text)
    elif d.outside:
        text = f"{name} runs in one {d.delegate} partition{nodes}{outside}."
        yield Finding("info", text)


def _steadiness(m: Measurement, name: str) -> Iterator[Finding]:
    if not m.warmup_steady:
        yield Finding(
            "warn",
            f"{name} never became steady in {plural(m.warmup_runs, 'warm-up run')}: its samples "
            "may still hold the warm-up.",
        )
    stats = m.latency
    if stats.n < FEW_SAMPLES:
        yield Finding(
            "warn",
            f"{name} has only {plural(stats.n, 'sample')}: its percentiles rest on one or two.",
        )
    elif stats.p50 > 0 and stats.p99 / stats.p50 > LONG_TAIL:
        yield Finding(
            "warn",
            f"{name} has a long tail: p99 {milliseconds(stats.p99)} is "
            f"{times(stats.p99 / stats.p50)}× its median.",
        )
    blocks = [median(block) for block in m.samples_ms if block]
    if len(blocks) > 2 and abs(blocks[-1] / blocks[0] - 1) > DRIFT:
        yield Finding(
            "warn",
            f"{name} drifted from {milliseconds(blocks[0])} in the first block to "
            f"{milliseconds(blocks[-1])} in the last: heat, clock frequency or other work.",
        )


def _likeness(record: RunRecord) -> Iterator[Finding]:
    """Comparisons that are not of like with like."""
    items = record.measurements
    threads: dict[int, list[str]] = {}
    for m, name in zip(items, labels(record), strict=True):
        threads.setdefault(m.threads, []).append(name)
    if len(threads) > 1:
        split = "; ".join(
            f"{plural(count, 'thread')}: {listing(who)}" for count, who in sorted(threads.items())
        )
        yield Finding("warn", f"The artefacts ran with different thread counts ({split}).")
    for model in models_of(record):
        shapes = {tuple(sorted(m.input_shape)) for m in items if m.model == model}
        if len(shapes) > 1:
            yield Finding("warn", f"The artefacts of {model} take inputs of different size.")


def _device(record: RunRecord) -> Iterator[Finding]:
    env = record.environment
    cores = env.cores_logical or env.cores_physical
    if env.load_average is not None and cores and env.load_average > BUSY * cores:
        yield Finding(
            "warn",
            f"The device was busy at the start: load average {env.load_average:.1f} on "
            f"{plural(cores, 'core')}.",
        )
    if env.governor and env.governor != "performance":
        yield Finding("info", f"The CPU governor was '{env.governor}', not 'performance'.")
    for note in record.notes:
        if "random" in note.lower() or "requests were served" in note:
            yield Finding("warn", note)


def _absent(record: RunRecord) -> Iterator[Finding]:
    for item in record.not_measured:
        what = engine_name(item.target) if item.target else item.file
        name = item.label if what.lower() in item.label.lower() else f"{item.label} ({what})"
        yield Finding("info", f"{name} was not measured: {item.reason.rstrip('.')}.", "absent")

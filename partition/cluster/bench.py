"""Measure a running cluster from outside: end to end, by stage, by worker; degraded ones apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from partition.cluster.asking import Caller, ClusterAnswer, CoordinatorView, NoAnswer
from partition.cluster.bench_record import (
    CLIENT,
    AnswerGroup,
    ClusterRun,
    ClusterSample,
    DeviceRun,
    Kind,
    RunError,
    StageTime,
    WorkerRun,
)
from partition.cluster.load import ERROR_PAUSE_S, Load, drive
from partition.cluster.running import Running
from partition.plan import PlanRecord
from partition.serving.service import BROADCAST, LOCAL_INPUT, STAGES
from runtime.devices.survey import Seen, survey
from runtime.environment import describe, edgevit_version
from runtime.errors import CheckFailed, RuntimeFault
from runtime.inputs import random_input, to_input
from runtime.run_record import LatencyStats
from runtime.sessions.base import Array
from runtime.stats import latency_stats

WARM_UP, WARM_UP_S = 20, 10.0  # requests of each caller
LIMIT_S = 300.0
LOOK_S = 3.0
STAGE_NAMES = (CLIENT, *(stage.removesuffix("_us") for stage in STAGES))


@dataclass(frozen=True)
class BenchOptions:
    """What is sent and how often. `picture` is (H, W, 3), prepared as the plan says.

    Without a picture it is a random one; with input_ref the workers take the input of that name
    themselves. limit_s bounds the time in which requests are begun.
    """

    requests: int = 200
    in_flight: int = 1
    picture: Array | None = None
    input_ref: str | None = None
    limit_s: float = LIMIT_S


Progress = Callable[[str, float], None]


def bench(running: Running, options: BenchOptions, progress: Progress) -> ClusterRun:
    """Warm up, then send the requests and keep every answer's times.

    Raises CheckFailed where the coordinator is not there, serves another plan, or answers nothing.
    """
    progress("look at the devices", 0.0)
    environment = describe()
    known = [device.known for device in running.devices if device.known is not None]
    with Caller(running) as caller:
        view = caller.look(LOOK_S)
        caller.check(view)
        before = _by_name(survey(known, LOOK_S))
        x = None if options.input_ref is not None else _input(view, options.picture)
        request = caller.request(view, x, options.input_ref)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        progress("warm up", 0.0)
        warm = drive(
            caller, request, count=WARM_UP * options.in_flight, in_flight=options.in_flight,
            limit_s=WARM_UP_S, tell=lambda done: None,
        )  # fmt: skip
        if not warm.answers:
            raise _nothing(warm)
        load = drive(
            caller, request, count=options.requests, in_flight=options.in_flight,
            limit_s=options.limit_s, tell=lambda done: progress("ask", done),
        )  # fmt: skip
        if not load.answers:
            raise _nothing(load)
        if any(answer.plan_digest != running.plan.digest for _, answer in load.answers):
            raise CheckFailed(
                "the coordinator was started anew with another plan meanwhile; measure again"
            )
        view = _looked(caller, view)
    after = _by_name(survey(known, LOOK_S))
    progress("done", 1.0)
    samples = [_sample(at_ms, answer) for at_ms, answer in load.answers]
    record = running.plan.record
    return ClusterRun(
        edgevit_version=edgevit_version(),
        created=created,
        plan=running.plan.path.name,
        plan_digest=running.plan.digest,
        model=view.model,
        coordinator=running.asked().how.address,
        mode=load.answers[0][1].mode or (LOCAL_INPUT if options.input_ref else BROADCAST),
        requests=options.requests,
        in_flight=options.in_flight,
        duration_s=load.duration_s,
        predicted_ms=record.placed.latency * 1e3 if record.placed.latency > 0 else None,
        environment=environment,
        method=_method(options, x, warm),
        stages=list(STAGE_NAMES),
        samples=samples,
        groups=groups_of(samples, load.duration_s),
        errors=_errors(load),
        workers=_workers(record, samples, view),
        devices=[
            _device(running, device.name, before.get(device.name), after.get(device.name))
            for device in running.devices
        ],
        notes=_notes(options, load),
    )


def groups_of(samples: Sequence[ClusterSample], duration_s: float) -> list[AnswerGroup]:
    """The statistics of whole and of degraded answers, each by itself."""
    kinds: tuple[Kind, ...] = ("whole", "degraded")
    parts = {kind: [sample for sample in samples if sample.kind == kind] for kind in kinds}
    return [_group(kind, parts[kind], duration_s) for kind in kinds if parts[kind]]


def _group(kind: Kind, samples: Sequence[ClusterSample], duration_s: float) -> AnswerGroup:
    latency = _stats([sample.ms for sample in samples])
    columns = zip(*(sample.stages_ms for sample in samples), strict=True)
    stages = []
    for name, column in zip(STAGE_NAMES, columns, strict=True):
        stats = _stats(column)
        stages.append(StageTime(name=name, latency=stats, share=stats.mean / latency.mean))
    ages = [s.input_age_ms for s in samples if s.input_age_ms is not None]
    spreads = [s.input_spread_ms for s in samples if s.input_spread_ms is not None]
    return AnswerGroup(
        kind=kind,
        per_s=len(samples) / duration_s,
        latency=latency,
        stages=stages,
        unaccounted_ms=latency.mean - sum(stage.latency.mean for stage in stages),
        input_age=_stats(ages) if ages else None,
        input_spread=_stats(spreads) if spreads else None,
    )


def _stats(values: Sequence[float]) -> LatencyStats:
    return latency_stats([list(values)])


def _sample(at_ms: float, answer: ClusterAnswer) -> ClusterSample:
    return ClusterSample(
        at_ms=at_ms,
        ms=answer.elapsed_ms,
        stages_ms=[answer.all_stages_ms[name] for name in STAGE_NAMES],
        straggler=answer.straggler,
        together=answer.together,
        missing=list(answer.missing),
        input_age_ms=answer.input_age_ms,
        input_spread_ms=answer.input_spread_ms,
    )


def _input(view: CoordinatorView, picture_HWC: Array | None) -> Array:
    return random_input(view.input) if picture_HWC is None else to_input(picture_HWC, view.input)


def _looked(caller: Caller, before: CoordinatorView) -> CoordinatorView:
    """The coordinator's view when all is done; the one from before where it has gone meanwhile."""
    try:
        return caller.look(LOOK_S)
    except RuntimeFault:
        return before


def _nothing(load: Load) -> CheckFailed:
    """The error for a run without an answer: the most frequent reason."""
    ((text, _),) = Counter(str(error) for _, error in load.errors).most_common(1)
    return CheckFailed(f"none of {len(load.errors)} requests was answered: {text}")


def _errors(load: Load) -> list[RunError]:
    found: dict[tuple[str, str], RunError] = {}
    for at_ms, error in sorted(load.errors, key=lambda entry: entry[0]):
        key = _key(error)
        if key in found:
            found[key].count += 1
        else:
            found[key] = RunError(status=key[0], reason=key[1], count=1, first_at_ms=at_ms)
    return sorted(found.values(), key=lambda each: -each.count)


def _key(error: NoAnswer) -> tuple[str, str]:
    return error.status, str(error)


def _workers(
    record: PlanRecord, samples: Sequence[ClusterSample], view: CoordinatorView
) -> list[WorkerRun]:
    last = Counter(sample.straggler for sample in samples if sample.kind == "whole")
    workers = []
    for submodel in record.submodels:
        for device in (submodel.primary, *submodel.replicas):
            name = f"{submodel.name}@{device}"
            told = view.workers.get(name)
            workers.append(
                WorkerRun(
                    name=name,
                    submodel=submodel.name,
                    device=device,
                    classes=[record.labels[index] for index in submodel.classes],
                    straggler=last[name],
                    p50_ms=told.p50_us / 1e3 if told and told.p50_us is not None else None,
                    usable=told.usable if told else None,
                    reason=told.reason if told else "",
                )
            )
    return workers


def _device(running: Running, name: str, before: Seen | None, after: Seen | None) -> DeviceRun:
    device = next(device for device in running.devices if device.name == name)
    planned = next(device for device in running.plan.record.devices if device.name == name)
    base = DeviceRun(
        name=name,
        address=device.known.how.address if device.known is not None else None,
        predicted_ms=planned.latency * 1e3 if planned.latency > 0 else None,
        target=planned.target,
    )
    seen = next((s for s in (before, after) if s is not None and s.device is not None), None)
    if seen is None or seen.device is None:
        either = before or after
        return base.model_copy(update={"reason": either.reason if either else device.why})
    found = seen.device
    digests = {running.plan.record.submodel(s).bundle_digest for s in device.submodels}
    engines = [f"{e.name} {e.version}" for e in found.engines if e.target == planned.target]
    update = {
        "environment": found.environment,
        "edgevit_version": found.edgevit_version,
        "engine": engines[0].strip() if engines else None,
        "threads": sorted({m.threads for m in found.models if m.digest in digests}),
        "temperature_before_c": before.device.temperature_c if before and before.device else None,
        "temperature_after_c": after.device.temperature_c if after and after.device else None,
    }
    return base.model_copy(update=update)


def _method(
    options: BenchOptions, x: Array | None, warm: Load
) -> dict[str, str | int | float | bool]:
    if options.input_ref is not None:
        what = f"'{options.input_ref}', which every worker reads itself"
    else:
        assert x is not None
        kind = "a photo" if options.picture is not None else "a random picture"
        what = f"{kind}, {x.dtype} {'×'.join(map(str, x.shape))}, {x.nbytes} bytes, always the same"
    return {
        "input": what,
        "callers": f"{options.in_flight}, each with one request at a time, in threads of one "
        "process over one connection",
        "warm_up": f"{warm.sent} requests in {warm.duration_s:.1f} s, not counted",
        "bounds": f"{options.requests} requests, none begun after {options.limit_s:g} s",
        "after_an_error": f"a caller pauses {ERROR_PAUSE_S * 1e3:g} ms; nothing is sent again",
        "clock": "time.perf_counter_ns",
    }


def _notes(options: BenchOptions, load: Load) -> list[str]:
    if load.sent >= options.requests:
        return []
    return [
        f"Stopped after {options.limit_s:g} s with {load.sent} of {options.requests} requests sent."
    ]


def _by_name(found: Sequence[Seen]) -> dict[str, Seen]:
    return {seen.known.name: seen for seen in found}

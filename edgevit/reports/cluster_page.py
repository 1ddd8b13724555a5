"""The page of a bench of a cluster: one self-contained HTML file, charts and raw samples inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgevit.reports import embed
from edgevit.reports.cluster_charts import STAGE_TINTS, chart_plan, legend_of, step_of
from edgevit.reports.cluster_verdict import cluster_findings, stage_name
from edgevit.reports.page import environment_facts
from edgevit.reports.present import ABSENT, date, decimals_for, number, plural
from edgevit.reports.verdict import Finding
from partition.cluster.bench_record import AnswerGroup, ClusterRun, DeviceRun
from runtime.run_record import Environment, LatencyStats


@dataclass(frozen=True)
class StageRow:
    """One stage, or the whole way; `width` is its bar, in per cent of the widest."""

    name: str
    colour: str
    mean: str
    share: str
    width: str
    p50: str
    p90: str
    p95: str
    p99: str
    least: str
    std: str


@dataclass(frozen=True)
class GroupView:
    """The answers of one kind."""

    kind: str
    count: int
    per_s: str
    total: StageRow
    stages: list[StageRow]
    unaccounted: str
    inputs: list[tuple[str, str]]


@dataclass(frozen=True)
class WorkerRow:
    """One worker; `width` is the bar of how often it was last."""

    name: str
    classes: str
    straggler: int
    share: str
    width: str
    p50: str
    state: str
    worst: bool


@dataclass(frozen=True)
class DeviceRow:
    """One device: what the plan predicted for it beside its slowest sub-model."""

    name: str
    address: str
    engine: str
    threads: str
    predicted: str
    measured: str
    temperature: str
    reason: str


@dataclass(frozen=True)
class MachineRow:
    """A machine as its system tells; `state` is that of the start."""

    name: str
    hardware: str
    more: str
    system: str
    software: str
    state: str


@dataclass(frozen=True)
class ClusterPage:
    """The whole page."""

    title: str
    subtitle: str
    findings: list[Finding]
    groups: list[GroupView]
    workers: list[WorkerRow]
    devices: list[DeviceRow]
    errors: list[tuple[str, str, int, str]]
    machines: list[MachineRow]
    method: list[tuple[str, str]]


def render_cluster(run: ClusterRun) -> str:
    """The page as one HTML document. Every text of the record is escaped.

    Raises RuntimeFault where the installed Altair and vl-convert do not fit together.
    """
    return embed.render(
        "cluster.html.j2",
        data=[_numbers(run)],
        plan=chart_plan(run),
        page=build_cluster_page(run),
        legend=legend_of(run),
        step=step_of(run),
    )


def build_cluster_page(run: ClusterRun) -> ClusterPage:
    """What the page and the terminal show, as rows of text."""
    return ClusterPage(
        title=f"{run.model} on {plural(len(run.devices), 'device')}",
        subtitle=" · ".join(
            [
                f"plan {run.plan} ({run.plan_digest[:12]})", f"coordinator {run.coordinator}",
                run.mode, f"{plural(run.in_flight, 'request')} at once", date(run.created),
            ]
        ),
        findings=cluster_findings(run),
        groups=[_group(group) for group in run.groups],
        workers=_workers(run),
        devices=_devices(run),
        errors=[(e.status, e.reason, e.count, f"{e.first_at_ms / 1e3:.2f}") for e in run.errors],
        machines=_machines(run),
        method=[(name.replace("_", " "), str(value)) for name, value in run.method.items()],
    )  # fmt: skip


def _group(group: AnswerGroup) -> GroupView:
    widest = max(stage.share for stage in group.stages) or 1.0
    inputs = []
    if group.input_age is not None:
        inputs.append(("oldest input of an answer", group.input_age))
    if group.input_spread is not None:
        inputs.append(("between the inputs of an answer", group.input_spread))
    return GroupView(
        kind=group.kind,
        count=group.latency.n,
        per_s=f"{group.per_s:.3g}",
        total=_row("end to end", "", group.latency, 1.0, 0.0),
        stages=[
            _row(
                stage_name(stage.name), STAGE_TINTS.get(stage.name, "var(--c7)"), stage.latency,
                stage.share, stage.share / widest,
            )
            for stage in group.stages
        ],
        unaccounted=number(group.unaccounted_ms, 3),
        inputs=[
            (name, f"p50 {stats.p50:.1f} ms, p95 {stats.p95:.1f} ms") for name, stats in inputs
        ],
    )  # fmt: skip


def _row(name: str, colour: str, stats: LatencyStats, share: float, width: float) -> StageRow:
    values = (stats.mean, stats.p50, stats.p90, stats.p95, stats.p99, stats.min, stats.std)
    mean, p50, p90, p95, p99, least, std = (number(value, 3) for value in values)
    return StageRow(
        name, colour, mean, f"{100 * share:.1f}", f"{100 * max(0.0, min(1.0, width)):.1f}",
        p50, p90, p95, p99, least, std,
    )  # fmt: skip


def _workers(run: ClusterRun) -> list[WorkerRow]:
    whole = sum(sample.kind == "whole" for sample in run.samples)
    most = max((worker.straggler for worker in run.workers), default=0)
    told = [w.p50_ms for w in run.workers if w.p50_ms is not None]
    decimals = decimals_for(told)
    return [
        WorkerRow(
            name=worker.name,
            classes=f"{len(worker.classes)} class{'' if len(worker.classes) == 1 else 'es'}",
            straggler=worker.straggler,
            share=f"{100 * worker.straggler / whole:.1f}" if whole else ABSENT,
            width=f"{100 * worker.straggler / most:.1f}" if most else "0.0",
            p50=number(worker.p50_ms, decimals),
            state=ABSENT if worker.usable is None else "ready" if worker.usable else "out",
            worst=bool(most) and worker.straggler == most,
        )
        for worker in run.workers
    ]


def _devices(run: ClusterRun) -> list[DeviceRow]:
    predicted = [d.predicted_ms for d in run.devices if d.predicted_ms is not None]
    own = {
        device.name: [
            w.p50_ms for w in run.workers if w.device == device.name and w.p50_ms is not None
        ]
        for device in run.devices
    }
    slowest = {name: max(values, default=None) for name, values in own.items()}
    measured = decimals_for(value for value in slowest.values() if value is not None)
    return [
        DeviceRow(
            name=device.name,
            address=device.address or ABSENT,
            engine=f"{device.engine} ({device.target})" if device.engine else device.target,
            threads=", ".join(map(str, device.threads)) or ABSENT,
            predicted=number(device.predicted_ms, decimals_for(predicted)),
            measured=number(slowest[device.name], measured),
            temperature=_warmth(device),
            reason=device.reason,
        )
        for device in run.devices
    ]


def _warmth(device: DeviceRun) -> str:
    """The temperatures that were told, before and after."""
    ends = (device.temperature_before_c, device.temperature_after_c)
    return " → ".join(f"{value:.0f}" for value in ends if value is not None) or ABSENT


def _machines(run: ClusterRun) -> list[MachineRow]:
    machines = [_machine("the machine that asked", run.environment, run.edgevit_version)]
    known = [device for device in run.devices if device.environment is not None]
    for device in known:
        assert device.environment is not None
        machines.append(_machine(device.name, device.environment, device.edgevit_version))
    return machines


def _machine(name: str, environment: Environment, version: str | None) -> MachineRow:
    facts = {key: value for key, value in environment_facts(environment) if value is not None}
    facts["edgevit"] = f"edgevit {version}" if version else ""
    for key, text in (("Python", "Python {}"), ("load average at the start", "load average {}")):
        facts[key] = text.format(facts[key]) if key in facts else ""
    facts["memory"] = f"{facts['memory']} of memory" if "memory" in facts else ""
    cpu = facts.get("CPU", "") if facts.get("CPU") != facts["device"] else ""

    def joined(*keys: str) -> str:
        return " · ".join(facts[key] for key in keys if facts.get(key))

    more = (cpu, joined("cores", "memory"), facts.get("SIMD", ""))
    return MachineRow(
        name=name,
        hardware=facts["device"],
        more=" · ".join(part for part in more if part),
        system=facts["system"],
        software=joined("host name", "Python", "edgevit"),
        state=joined("CPU governor", "CPU frequency", "temperature", "load average at the start"),
    )


def _numbers(run: ClusterRun) -> dict[str, Any]:
    """The record as JSON values; times to the nanosecond, which is what the clock has."""
    values: dict[str, Any] = run.model_dump(mode="json", exclude_none=True)
    for sample in values["samples"]:
        sample["stages_ms"] = [round(value, 6) for value in sample["stages_ms"]]
        for name in ("at_ms", "ms"):
            sample[name] = round(sample[name], 6)
    return values

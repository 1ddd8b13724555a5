"""The charts of a bench of a cluster: where the time goes, how it spreads, how it went on."""

from __future__ import annotations

from typing import Any

from edgevit.reports.charts import (
    MOST_DOTS,
    PALETTE_SIZE,
    Spec,
    axis_over,
    box,
    distribution,
    finish,
    timeline,
)
from edgevit.reports.cluster_verdict import stage_name
from edgevit.reports.present import decimals_for
from partition.cluster.bench_record import CLIENT, ClusterRun, ClusterSample
from runtime.run_record import LatencyStats
from runtime.stats import latency_stats

STAGES = (CLIENT, "decode", "queue", "network", "worker_queue", "compute", "wait", "fuse")
STAGE_TINTS = {
    stage: f"var(--c{place})" for stage, place in zip(STAGES, (7, 4, 6, 0, 5, 1, 3, 2), strict=True)
}
"""One colour a stage; neighbours differ."""
BLOCKS = 20
BAR_PX = 58
ALL = "all whole answers"
DEGRADED = "degraded answers"


def step_of(run: ClusterRun) -> int:
    """Every how manieth answer is drawn."""
    return max(1, -(-len(run.samples) // MOST_DOTS))


def chart_plan(run: ClusterRun) -> Spec:
    """The chart specs and what they draw besides the raw samples, which stay in the record.

    A row of the distribution is a series of answers: those of the worker that was last, the
    degraded ones, and all whole ones where several workers were ever last.
    """
    groups, tints = _series(run), _tints(run)
    axis = axis_over([stats for _, stats in groups.values()])
    decimals = decimals_for(stats.min for _, stats in groups.values())
    rows = [
        {"row": place, "name": name, **box(values, stats, axis, decimals, "answer")}
        for place, (name, (values, stats)) in enumerate(groups.items())
    ]
    step = step_of(run)
    return {
        "rows": rows,
        "bars": _bars(run),
        "blocks": BLOCKS,
        "all": ALL,
        "degraded": DEGRADED,
        "charts": [
            {"id": "stages", "spec": stage_bars(run)},
            {"id": "distribution", "spec": distribution(tints, axis, step, "answer")},
            {"id": "timeline", "spec": timeline(0, legend_of(run), axis, step, "answers")},
        ],
    }


def legend_of(run: ClusterRun) -> dict[str, str]:
    """The series of single answers with their colours: without the one that has them all again."""
    return {name: shade for name, shade in _tints(run).items() if name != ALL}


def _tints(run: ClusterRun) -> dict[str, str]:
    shades = {name: f"var(--c{i % PALETTE_SIZE})" for i, name in enumerate(_stragglers(run))}
    return {name: shades.get(name, "var(--muted)") for name in _series(run)}


def _stragglers(run: ClusterRun) -> list[str]:
    """The workers that were ever last in a whole answer, in the order of the plan."""
    return [worker.name for worker in run.workers if worker.straggler]


def _series(run: ClusterRun) -> dict[str, tuple[list[float], LatencyStats]]:
    parts: dict[str, list[ClusterSample]] = {}
    whole = [sample for sample in run.samples if sample.kind == "whole"]
    names = _stragglers(run)
    if len(names) > 1:
        parts[ALL] = whole
    for name in names:
        parts[name] = [sample for sample in whole if sample.straggler == name]
    parts[DEGRADED] = [sample for sample in run.samples if sample.kind == "degraded"]
    values = {name: [sample.ms for sample in own] for name, own in parts.items() if own}
    return {name: (own, latency_stats([own])) for name, own in values.items()}


def _bars(run: ClusterRun) -> list[dict[str, Any]]:
    """The means of the stages, one behind the other."""
    rows = []
    for group in run.groups:
        end = 0.0
        for stage in group.stages:
            begin, end = end, end + stage.latency.mean
            rows.append(
                {
                    "kind": f"{group.kind} answers", "stage": stage_name(stage.name),
                    "begin": begin, "end": end, "mean": stage.latency.mean,
                    "p50": stage.latency.p50, "p95": stage.latency.p95,
                }
            )  # fmt: skip
    return rows


def stage_bars(run: ClusterRun) -> Spec:
    """The mean of every stage, stacked to the end-to-end mean; a bar for each kind of answers."""
    import altair as alt

    names = [stage_name(stage) for stage in run.stages]
    tints = [STAGE_TINTS.get(stage, "var(--c7)") for stage in run.stages]
    kinds = [f"{group.kind} answers" for group in run.groups]
    chart = (
        alt.Chart(alt.NamedData("bars"))
        .mark_bar(height=26)
        .encode(
            alt.X("begin:Q", title="mean time of an answer, ms", axis=alt.Axis(tickCount=8)),
            alt.Y("kind:N", title=None, sort=kinds, axis=alt.Axis(labelFontSize=13)),
            alt.Color("stage:N", legend=None, scale=alt.Scale(domain=names, range=tints)),
            x2="end:Q",
            tooltip=[
                alt.Tooltip("stage:N"),
                alt.Tooltip("mean:Q", title="mean, ms", format=".3f"),
                alt.Tooltip("p50:Q", title="p50, ms", format=".3f"),
                alt.Tooltip("p95:Q", title="p95, ms", format=".3f"),
            ],
        )
    )
    return finish(chart, BAR_PX * len(kinds))

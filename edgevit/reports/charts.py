"""The charts, built by Altair. They name their data; the page fills it from the embedded records.

Colours are CSS variables (`var(--ink)`), so one SVG follows light, dark and print by itself.
Vertical positions of the distribution are in rows: a row is one artefact, its label on top, the
dots under it, the box at the foot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevit.reports.present import labels, number, plural
from runtime.run_record import LatencyStats, Measurement, RunRecord

PALETTE_SIZE = 8
"""Colours --c0 to --c7 in report.css; further artefacts start again."""
MOST_DOTS = 4000
"""More samples than this are thinned in the pictures; statistics use all of them."""
LOG_FROM = 4.0
"""A ratio of the largest to the smallest shown latency from which the axis is logarithmic."""
ROW_PX = 84

FONT = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Noto Sans', Ubuntu, Cantarell, "
    "'Helvetica Neue', Arial, sans-serif"
)

Spec = dict[str, Any]
Tints = Mapping[str, str]
"""The colour of each name of the page, in the order of the rows."""


@dataclass(frozen=True)
class Axis:
    """The span of milliseconds that a chart shows, and how."""

    low: float
    high: float
    log: bool


def axis_of(measurements: Sequence[Measurement]) -> Axis:
    """From the least sample to a little over the largest p99, so that one hiccup does not squash
    the rest; what lies beyond is counted in words."""
    return axis_over([m.latency for m in measurements])


def axis_over(latencies: Sequence[LatencyStats]) -> Axis:
    """The same of statistics, by whatever they were measured."""
    low = min(latency.min for latency in latencies)
    high = max(max(latency.p99, latency.p50) for latency in latencies)
    log = low > 0 and high / low > LOG_FROM
    pad = 0.04 * (high - low) or 0.05 * high or 1.0
    if log:
        return Axis(low / 1.08, high * 1.08, True)
    return Axis(max(low - pad, 0.0), high + 1.5 * pad, False)


def thinning(records: Sequence[RunRecord]) -> int:
    """Every how manieth sample is drawn."""
    total = sum(len(b) for r in records for m in r.measurements for b in m.samples_ms)
    return max(1, -(-total // MOST_DOTS))


def row_of(
    m: Measurement, *, record: int, item: int, row: int, name: str, axis: Axis, decimals: int
) -> Spec:
    """What the charts need of one measurement besides its raw samples."""
    samples = [s for block in m.samples_ms for s in block]
    return {
        "record": record, "item": item, "row": row, "name": name,
        **box(samples, m.latency, axis, decimals),
    }  # fmt: skip


def box(
    values: Sequence[float], latency: LatencyStats, axis: Axis, decimals: int, noun: str = "run"
) -> Spec:
    """What is drawn and said of samples in milliseconds, besides the samples; `noun` is one."""

    def show(value: float) -> str:
        return number(value, decimals)

    samples = np.array(values)
    p05, p25, p75 = (float(q) for q in np.percentile(samples, [5, 25, 75]))
    beyond = samples[samples > axis.high]
    words = plural(len(beyond), noun)
    return {
        "p05": p05,
        "p25": p25,
        "p50": latency.p50,
        "p75": p75,
        "p90": latency.p90,
        "p95": latency.p95,
        "beyond": f"{words} beyond, up to {show(beyond.max())} ms ▸" if len(beyond) else "",
        "numbers": f"p50 {show(latency.p50)} · p90 {show(latency.p90)} ms",
    }


def colours(records: Sequence[RunRecord]) -> list[list[str]]:
    """The CSS colour of each measurement: one label has one colour, on every device."""
    own = [labels(record) for record in records]
    place = {name: i for i, name in enumerate(dict.fromkeys(n for names in own for n in names))}
    return [[f"var(--c{place[n] % PALETTE_SIZE})" for n in names] for names in own]


def distribution(tints: Tints, axis: Axis, step: int, what: str = "run") -> Spec:
    """Raw samples, box, p50 and p90 of every row over one axis in ms; a sample is of one `what`."""
    import altair as alt

    def x(field: str) -> Any:
        return alt.X(
            f"{field}:Q",
            title=f"latency of one {what}, ms" + (" (logarithmic)" if axis.log else ""),
            scale=_scale(alt, axis),
            axis=alt.Axis(tickCount=6, labelFlush=True),
        )

    def y(shift: float) -> Any:
        at = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[len(tints), 0], nice=False))
        return rows.transform_calculate(y=f"datum.row + {shift}"), at

    rows = alt.Chart(alt.NamedData("rows"))
    tint = _tint(alt, tints)
    tips = [
        alt.Tooltip("name:N", title="artefact"),
        alt.Tooltip("ms:Q", format=".4f"),
        alt.Tooltip("block:Q"),
    ]
    dots = (
        alt.Chart(alt.NamedData("samples"))
        .transform_filter(f"datum.ms <= {axis.high} && datum.i % {step} == 0")
        .transform_calculate(y="datum.row + 0.27 + 0.30 * ((datum.i * 0.6180339887) % 1)")
        .mark_circle(size=11, opacity=0.5)
        .encode(x("ms"), y(0)[1], tint, tooltip=tips)
    )
    box, box_y = y(0.72)
    whisker = box.mark_rule(strokeWidth=1.2).encode(x("p05"), box_y, tint, x2="p95:Q")
    middle = box.mark_rule(strokeWidth=10, opacity=0.35).encode(x("p25"), box_y, tint, x2="p75:Q")
    box_tips = [alt.Tooltip("name:N", title="artefact")] + [
        alt.Tooltip(f"{q}:Q", format=".4g") for q in ("p05", "p25", "p50", "p75", "p90", "p95")
    ]
    p50 = box.mark_tick(orient="vertical", size=18, thickness=3, opacity=1).encode(
        x("p50"), box_y, tint, tooltip=box_tips
    )
    p90 = box.mark_point(shape="diamond", size=46, filled=True, opacity=1).encode(
        x("p90"), box_y, tint, tooltip=box_tips
    )
    head, head_y = y(0.12)
    labels = head.mark_text(
        align="left", fontSize=13, fontWeight=600, limit=alt.expr("width - 150"), color="var(--ink)"
    ).encode(head_y, x=alt.value(0), text="name:N")
    numbers = head.mark_text(align="right", fontSize=12, color="var(--muted)").encode(
        head_y, x=alt.value("width"), text="numbers:N"
    )
    foot, foot_y = y(0.92)
    beyond = foot.mark_text(align="right", fontSize=11, color="var(--muted)").encode(
        foot_y, x=alt.value("width"), text="beyond:N"
    )
    chart = alt.layer(dots, whisker, middle, p50, p90, labels, numbers, beyond)
    return finish(chart, ROW_PX * len(tints))


def timeline(record: int, tints: Tints, axis: Axis, step: int, what: str = "runs") -> Spec:
    """Every sample of one record in the order it was taken; a bar is the median of a block."""
    import altair as alt

    samples = alt.Chart(alt.NamedData("samples")).transform_filter(f"datum.record == {record}")
    y = alt.Y("ms:Q", title="ms", scale=_scale(alt, axis), axis=alt.Axis(tickCount=5))
    x_title = f"{what} in the order they were made"
    along = alt.Axis(tickCount=8, grid=False)
    tint = _tint(alt, tints)
    dots = (
        samples.transform_filter(f"datum.ms <= {axis.high} && datum.i % {step} == 0")
        .mark_circle(size=11, opacity=0.45)
        .encode(
            alt.X("order:Q", title=x_title, scale=alt.Scale(nice=False, padding=4), axis=along),
            y,
            tint,
            tooltip=[
                alt.Tooltip("name:N", title="artefact"),
                alt.Tooltip("ms:Q", format=".4f"),
                alt.Tooltip("block:Q"),
            ],
        )
    )
    bars = (
        samples.transform_aggregate(
            middle="median(ms)", start="min(order)", end="max(order)", groupby=["name", "block"]
        )
        .mark_rule(strokeWidth=2.5, strokeCap="round", clip=True)
        .encode(
            alt.X("start:Q", title=x_title),
            alt.Y("middle:Q", title="ms"),
            tint,
            x2="end:Q",
            tooltip=[
                alt.Tooltip("name:N", title="artefact"),
                alt.Tooltip("block:Q"),
                alt.Tooltip("middle:Q", title="block median, ms", format=".4f"),
            ],
        )
    )
    return finish(alt.layer(dots, bars), 230)


def _scale(alt: Any, axis: Axis) -> Any:
    return alt.Scale(
        domain=[axis.low, axis.high], type="log" if axis.log else "linear", nice=False, zero=False
    )


def _tint(alt: Any, tints: Tints) -> Any:
    scale = alt.Scale(domain=list(tints), range=list(tints.values()))
    return alt.Color("name:N", legend=None, scale=scale)


def finish(chart: Any, height: int) -> Spec:
    """A chart of that height, in pixels, in the page's colours and as wide as its place."""
    import altair as alt

    with alt.theme.enable("none"):
        spec: Spec = (
            chart.properties(width="container", height=height)
            .configure(background="transparent", font=FONT, padding=2)
            .configure_view(stroke=None)
            .configure_axis(
                labelColor="var(--muted)",
                titleColor="var(--muted)",
                labelFontSize=12,
                titleFontSize=12,
                titleFontWeight="normal",
                gridColor="var(--grid)",
                domain=False,
                ticks=False,
                labelPadding=6,
            )
            .to_dict()
        )
    return spec

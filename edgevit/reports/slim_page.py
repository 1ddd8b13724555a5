"""The page of a slimming: one self-contained HTML file, the way of the search and what it beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converters.slim.record import Finished, Network, SlimRecord
from edgevit.reports import embed
from edgevit.reports.charts import Spec, finish
from edgevit.reports.present import ABSENT, date, number, plural
from edgevit.reports.verdict import Finding

TINTS = {"search": "var(--c0)", "uniform": "var(--c1)", "random": "var(--c7)"}
NAMES = {"search": "search", "uniform": "uniform scaling", "random": "random networks"}
CHART_PX = 380
NEAR = 0.05  # latencies that are called equal, as a share


@dataclass(frozen=True)
class Row:
    """One network; `name` is its step, or the way it was made in."""

    name: str
    action: str
    predicted: str
    measured: str
    top1: str
    loss: str
    params: str
    tried: str
    shape: str


@dataclass(frozen=True)
class FinishedRow:
    """One network after fine-tuning."""

    name: str
    measured: str
    held: str
    test: str
    top5: str


@dataclass(frozen=True)
class SlimPage:
    """The whole page."""

    title: str
    subtitle: str
    findings: list[Finding]
    legend: dict[str, str]
    path: list[Row]
    others: list[Row]
    landings: list[tuple[str, str, str, str]]
    finished: list[FinishedRow]
    facts: list[tuple[str, str]]
    notes: list[str]


def render_slim(record: SlimRecord) -> str:
    """The page as one HTML document. Every text of the record is escaped.

    Raises RuntimeFault where the installed Altair and vl-convert do not fit together.
    """
    values = record.model_dump(mode="json", exclude_none=True)
    return embed.render(
        "slim.html.j2",
        data=[values],
        plan={
            "networks": [_dot(network) for network in record.networks],
            "target": [{"ms": record.target_ms}],
            "charts": [{"id": "trajectory", "spec": trajectory(record)}],
        },
        page=build_slim_page(record),
    )


def build_slim_page(record: SlimRecord) -> SlimPage:
    """What the page shows, as rows of text."""
    ways = list(dict.fromkeys(network.way for network in record.networks))
    return SlimPage(
        title=f"{record.model} slimmed to {record.target_ms:g} ms",
        subtitle=" · ".join(
            [
                record.engine, record.device, plural(record.threads, "thread"),
                f"{record.side} px", record.data, date(record.created),
            ]
        ),
        findings=findings_of(record),
        legend={NAMES[way]: TINTS[way] for way in ways},
        path=[_row(network) for network in record.path],
        others=[_row(network) for network in record.networks if network.way != "search"],
        landings=[
            (f"{each.aim_ms:.4g}", f"{each.predicted_ms:.4g}", f"{each.measured_ms:.4g}",
             f"{100 * (each.measured_ms / record.target_ms - 1):+.1f}")
            for each in record.landings
        ],
        finished=[_finished(each) for each in record.finished],
        facts=_facts(record),
        notes=record.notes,
    )  # fmt: skip


def beside_the_end(record: SlimRecord) -> list[Network]:
    """Of each baseline the one to compare the end with: the last uniform, the best random one."""
    scaled = [network for network in record.networks if network.way == "uniform"]
    drawn = [network for network in record.networks if network.way == "random"]
    best = max(drawn, key=lambda network: (network.top1, -network.loss), default=None)
    return [*scaled[-1:], *([best] if best is not None else [])]


def findings_of(record: SlimRecord) -> list[Finding]:
    """The verdict: where it ended, what it is better than, and what to be careful about."""
    end, whole, result = record.end, record.path[0], record.result
    measured = record.landings[-1].measured_ms
    found = [
        Finding(
            "good",
            f"{measured:.3g} ms measured, {100 * (measured / record.target_ms - 1):+.1f} % of the "
            f"{record.target_ms:g} ms that were asked for, and {result.test_top1:.2f} % top-1 on "
            f"the test pictures, with {end.params / 1e6:.3g} M of {whole.params / 1e6:.3g} M "
            "parameters.",
            "speed",
        )
    ]
    for other in beside_the_end(record):
        found.append(_comparison(record, end, other))
    if record.table.error_percent is not None:
        level = "info" if record.table.error_percent <= 8 else "warn"
        found.append(
            Finding(
                level,  # type: ignore[arg-type] # one of the two literals
                f"The latency table is off by {record.table.error_percent:.1f} % on average, on "
                f"{record.table.fit_networks} random networks each left out of its fit.",
            )
        )
    if len(record.landings) > 1:
        found.append(
            Finding(
                "info",
                f"{len(record.landings)} networks were measured until one was near enough: the "
                "latency aimed at was corrected by each.",
            )
        )
    return found


def _comparison(record: SlimRecord, end: Network, other: Network) -> Finding:
    """The end against one baseline, held out and before fine-tuning, at which latencies."""
    lead = end.top1 - other.top1
    apart = other.predicted_ms / end.predicted_ms - 1
    at = (
        "at the same predicted latency"
        if abs(apart) <= NEAR
        else f"which is predicted to take {100 * (1 + apart):.0f} % of its time"
    )
    count = sum(network.way == other.way for network in record.networks)
    who = "uniform scaling" if other.way == "uniform" else f"the best of {count} random networks"
    where = (
        f"{abs(lead):.2f} points of held-out top-1 {'ahead of' if lead > 0 else 'behind'}"
        if lead
        else "in held-out top-1 level with"
    )
    return Finding(
        "good" if lead > 0 else "warn", f"Before fine-tuning the end is {where} {who}, {at}."
    )


def trajectory(record: SlimRecord) -> Spec:
    """Latency against accuracy, with a rule at the target."""
    import altair as alt

    ways = list(dict.fromkeys(network.way for network in record.networks))
    tint = alt.Color(
        "way:N", legend=None,
        scale=alt.Scale(domain=ways, range=[TINTS[way] for way in ways]),
    )  # fmt: skip
    x = alt.X("ms:Q", title="latency, ms", scale=alt.Scale(zero=False))
    y = alt.Y("top1:Q", title="held-out top-1 before fine-tuning, %", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("way:N"), alt.Tooltip("step:Q"), alt.Tooltip("action:N"),
        alt.Tooltip("ms:Q", title="predicted, ms", format=".4g"),
        alt.Tooltip("measured:Q", title="measured, ms", format=".4g"),
        alt.Tooltip("top1:Q", title="top-1, %", format=".2f"),
        alt.Tooltip("params:Q", title="parameters, M", format=".3f"),
    ]  # fmt: skip
    base = alt.Chart(alt.NamedData("networks"))
    lines = (
        base.transform_filter("datum.way != 'random'")
        .mark_line(strokeWidth=1.5)
        .encode(x, y, tint, order=alt.Order("step:Q"))
    )
    dots = base.mark_point(size=36, filled=True, opacity=0.85).encode(x, y, tint, tooltip=tooltip)
    measured = (
        base.transform_filter("isValid(datum.measured)")
        .mark_point(size=90, shape="diamond", strokeWidth=1.5, filled=False)
        .encode(alt.X("measured:Q", title="latency, ms"), y, tint, tooltip=tooltip)
    )
    rule = (
        alt.Chart(alt.NamedData("target"))
        .mark_rule(strokeDash=[5, 4], color="var(--ink)")
        .encode(alt.X("ms:Q", title="latency, ms"))
    )
    return finish(alt.layer(rule, lines, dots, measured), CHART_PX)


def _dot(network: Network) -> dict[str, Any]:
    return {
        "way": network.way, "step": network.step, "action": network.action,
        "ms": network.predicted_ms, "measured": network.measured_ms, "top1": network.top1,
        "params": network.params / 1e6,
    }  # fmt: skip


def _row(network: Network) -> Row:
    return Row(
        name=str(network.step) if network.way == "search" else f"{network.way} {network.step}",
        action=network.action,
        predicted=f"{network.predicted_ms:.4g}",
        measured=ABSENT if network.measured_ms is None else f"{network.measured_ms:.4g}",
        top1=number(network.top1, 2),
        loss=number(network.loss, 3),
        params=f"{network.params / 1e6:.3f}",
        tried=str(network.tried) if network.tried else ABSENT,
        shape=", ".join(f"{name} {_flat(value)}" for name, value in network.shape.items()),
    )


def _finished(each: Finished) -> FinishedRow:
    return FinishedRow(
        name=NAMES[each.way],
        measured=ABSENT if each.measured_ms is None else f"{each.measured_ms:.4g}",
        held=number(each.held_top1, 2),
        test=number(each.test_top1, 2),
        top5=number(each.test_top5, 2),
    )


def _facts(record: SlimRecord) -> list[tuple[str, str]]:
    """What the search was made with."""
    table, counts = record.table, record.pictures
    fit = (
        f"{table.fit_intercept_ms:.3g} ms + {table.fit_slope:.3g} times the sum of the parts"
        if table.fit_intercept_ms is not None and table.fit_slope is not None
        else "none"
    )
    return [
        ("objective", record.objective),
        ("inherits from", record.source),
        ("networks scored by the search", str(record.evaluated)),
        ("pictures", ", ".join(f"{n.replace('_', ' ')} {count}" for n, count in counts.items())),
        ("measured on", table.setup),
        ("parts in the table", str(table.parts)),
        ("correction", fit),
        ("seconds", ", ".join(f"{n} {value:.0f}" for n, value in record.timings_s.items())),
        ("versions", ", ".join(f"{n} {version}" for n, version in record.versions.items())),
        ("settings", ", ".join(f"{n} {value}" for n, value in record.settings.items())),
    ]


def _flat(value: Any) -> str:
    return "-".join(map(_flat, value)) if isinstance(value, list) else str(value)

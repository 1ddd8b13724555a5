"""The page of profiles: one self-contained HTML file with the charts and the raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevit.reports import charts, embed
from edgevit.reports.page import build_page
from edgevit.reports.present import decimals_for, labels, page_names
from edgevit.reports.verdict import Absent
from runtime.errors import RuntimeFault
from runtime.run_record import RunRecord


def render_html(
    records: Sequence[RunRecord], title: str | None = None, absent: Sequence[Absent] = ()
) -> str:
    """The report of one or more records as one HTML document.

    `title` replaces the heading that is made from the models and devices; `absent` are devices that
    gave no record. Every text that comes from a record is escaped. Raises RuntimeFault where there
    is no record to show, or where the installed Altair and vl-convert do not fit together.
    """
    if not records:
        raise RuntimeFault("a report needs at least one run record, got none")
    tints = charts.colours(records)
    return embed.render(
        "report.html.j2",
        data=[_numbers(record) for record in records],
        plan=_plan(records),
        page=build_page(records, title, absent),
        legends=[list(zip(labels(r), c, strict=True)) for r, c in zip(records, tints, strict=True)],
        step=charts.thinning(records),
    )


def write_html(
    records: Sequence[RunRecord],
    path: Path,
    title: str | None = None,
    absent: Sequence[Absent] = (),
) -> None:
    """Write the report to `path`, whole or not at all.

    Raises RuntimeFault where the file cannot be written; an older report is then left as it was.
    """
    embed.write_page(render_html(records, title, absent), path)


def _plan(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The chart specs and one row per measurement; the raw samples stay in the records."""
    names = page_names(records)
    tints = {
        name: shade
        for own, shades in zip(names, charts.colours(records), strict=True)
        for name, shade in zip(own, shades, strict=True)
    }
    everything = [m for record in records for m in record.measurements]
    if not everything:
        return {"rows": [], "charts": []}
    step = charts.thinning(records)
    axis = charts.axis_of(everything)
    decimals = decimals_for(m.latency.min for m in everything)
    rows: list[charts.Spec] = []
    for r, (record, own) in enumerate(zip(records, names, strict=True)):
        for i, (m, name) in enumerate(zip(record.measurements, own, strict=True)):
            rows.append(
                charts.row_of(
                    m, record=r, item=i, row=len(rows), name=name, axis=axis, decimals=decimals
                )
            )
    specs = [{"id": "distribution", "spec": charts.distribution(tints, axis, step)}]
    for r, record in enumerate(records):
        if record.measurements:
            own_axis = charts.axis_of(record.measurements)
            spec = charts.timeline(r, tints, own_axis, step)
            specs.append({"id": f"timeline-{r}", "spec": spec})
    return {"rows": rows, "charts": specs}


def _numbers(record: RunRecord) -> dict[str, Any]:
    """The record as JSON values; samples to the nanosecond, which is what the clock has."""
    values: dict[str, Any] = record.model_dump(mode="json", exclude_none=True)
    for m in values["measurements"]:
        m["samples_ms"] = [[round(s, 6) for s in block] for block in m["samples_ms"]]
    return values

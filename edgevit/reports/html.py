"""One self-contained HTML page: the charts' JavaScript and the raw numbers travel inside it.

The page's Content-Security-Policy lets nothing be fetched, so it opens the same on a plane.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from edgevit.reports import charts
from edgevit.reports.page import build_page
from edgevit.reports.present import decimals_for, labels, page_names, plural
from edgevit.reports.verdict import Absent
from runtime.errors import RuntimeFault
from runtime.run_record import RunRecord

HERE = Path(__file__).parent
EXPORT = "window.vegaEmbed = vegaEmbed;"


def render_html(
    records: Sequence[RunRecord], title: str | None = None, absent: Sequence[Absent] = ()
) -> str:
    """The report of one or more records as one HTML document.

    `title` replaces the heading that is made from the models and devices; `absent` are devices that
    gave no record. Every text that comes from a record is escaped. Raises RuntimeFault where there
    is no record to show, or where the installed Altair and vl-convert do not fit together.
    """
    import jinja2
    from markupsafe import Markup

    if not records:
        raise RuntimeFault("a report needs at least one run record, got none")
    plan = _plan(records)
    tints = charts.colours(records)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _tight
    return environment.get_template("report.html.j2").render(
        page=build_page(records, title, absent),
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 our own file
        bundle=Markup(_bundle()) if plan["rows"] else "",  # noqa: S704 the library's own file
        data=_script_json([_numbers(record) for record in records]),
        plan=_script_json(plan),
        charts=plan["charts"],
        legends=[list(zip(labels(r), c, strict=True)) for r, c in zip(records, tints, strict=True)],
        step=charts.thinning(records),
        plural=plural,
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
    text = render_html(records, title, absent)
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RuntimeFault(
            f"cannot write the report to {path}: {error.strerror or error}. "
            "Give a file in a folder that exists and that you may write to."
        ) from error


def _tight(text: str) -> str:
    """Running text that does not break inside 1.04–1.05, before a multiplier or before a unit."""
    text = re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", text)
    return re.sub(r" (?=×\d|ms\b|%)", "\u00a0", text)


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


def _script_json(value: object) -> Any:
    """JSON that cannot end the <script> it stands in, whatever the texts in it say."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 escaped above


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    try:
        bundle: str = vl_convert.javascript_bundle(EXPORT, vl_version=version)
    except (ValueError, RuntimeError) as error:
        raise RuntimeFault(
            f"Altair {altair.__version__} writes Vega-Lite {version}, which the installed "
            "vl-convert does not carry. Try: pip install --upgrade altair vl-convert-python"
        ) from error
    return bundle.replace("</script", "<\\/script")

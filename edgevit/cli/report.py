"""edgevit report: one page from several runs, devices or models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
    from edgevit.reports import Absent
    from runtime.run_record import RunRecord


class ReportFiles(NamedTuple):
    """The page and the numbers beside it."""

    html: Path
    json: Path
    csv: Path


@app.command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="RUN.json files of `edgevit profile`.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The page to write, .html.")],
    as_json: AsJson = False,
) -> None:
    """Compare runs, devices and models on one page."""
    from edgevit.cli.output import print_json, stdout
    from edgevit.reports import findings, print_table, write_html
    from runtime.run_files import load_run

    files = report_files(out)
    assert files is not None
    records = [load_run(path) for path in runs]
    write_html(records, files.html)
    if as_json:
        found = [{"level": f.level, "text": f.text} for f in findings(records)]
        print_json({"report": str(files.html), "runs": len(records), "findings": found})
    else:
        console = stdout()
        print_table(records, console)
        console.print(f"\nReport: {files.html}", markup=False, soft_wrap=True)


def report_files(out: Path | None) -> ReportFiles | None:
    """Where a report goes; refuses a name or a folder that cannot take it before any work."""
    from runtime.errors import RuntimeFault

    if out is None:
        return None
    if out.suffix not in (".html", ".htm"):
        raise RuntimeFault(f"-o expects a page name ending in .html, got '{out.name}'")
    if not out.absolute().parent.is_dir():
        raise RuntimeFault(f"the folder of the report does not exist: {out.absolute().parent}")
    if out.is_dir():
        raise RuntimeFault(f"-o expects a page to write, {out} is a folder")
    return ReportFiles(out, out.with_suffix(".json"), out.with_suffix(".csv"))


def write_report(
    records: list[RunRecord],
    files: ReportFiles,
    names: list[str] | None = None,
    absent: Sequence[Absent] = (),
) -> list[ReportFiles]:
    """The page, and JSON and CSV of each record: `report.json`, with names `report-NAME.json`."""
    from edgevit.reports import write_html
    from runtime.run_files import save_run, write_csv

    own = [files] if names is None else [_files_of(name, files) for name in _distinct(names)]
    for record, each in zip(records, own, strict=True):
        save_run(record, each.json)
        write_csv(record, each.csv)
    write_html(records, files.html, absent=absent)
    return own


def _files_of(name: str, files: ReportFiles) -> ReportFiles:
    stem = f"{files.html.stem}-{name}"
    return ReportFiles(
        files.html, files.html.with_name(f"{stem}.json"), files.html.with_name(f"{stem}.csv")
    )


def _distinct(names: list[str]) -> list[str]:
    """The names as parts of file names, numbered where they fall together, case aside."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") for name in names]
    seen: set[str] = set()
    found = []
    for name in plain:
        free, count = name, 1
        while free.lower() in seen:
            count += 1
            free = f"{name}-{count}"
        seen.add(free.lower())
        found.append(free)
    return found

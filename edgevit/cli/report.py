"""edgevit report: one page from several runs, devices or models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
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


def write_report(records: list[RunRecord], files: ReportFiles) -> None:
    """The page, and for a single run its JSON and CSV."""
    from edgevit.reports import write_html
    from runtime.run_files import save_run, write_csv

    save_run(records[0], files.json)
    write_csv(records[0], files.csv)
    write_html(records, files.html)

"""edgevit profile: measure artefacts here, interleaved, each in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.app import AsJson, Threads, app


@app.command("profile")
def profile(
    paths: Annotated[list[Path], typer.Argument(help="Bundles or artefact files.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="report.html; RUN.json and the CSV go beside it."),
    ] = None,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Samples per artefact.")] = 100,
    per_op: Annotated[
        bool, typer.Option("--per-op", help="Time every op too, where the engine can.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Profile artefacts on this machine: latency, load, first run, memory, delegation."""
    from edgevit.cli.output import print_json, print_next, stderr, stdout
    from edgevit.cli.report import report_files, write_report
    from runtime.profile_items import items_from
    from runtime.profiler import profile as measure

    files = report_files(out)
    items = items_from(paths)
    watched = stderr()
    if watched.is_terminal:
        from rich.progress import Progress

        with Progress(console=watched, transient=True) as bar:
            task = bar.add_task("profile", total=1.0)
            record = measure(
                items, threads, runs, per_op=per_op,
                progress=lambda text, done: bar.update(task, description=text, completed=done),
            )  # fmt: skip
    else:
        record = measure(items, threads, runs, per_op=per_op)
    if files is not None:
        write_report([record], files)
    if as_json:
        print_json({**record.model_dump(mode="json", exclude_none=True), "report": str(out or "")})
    else:
        from edgevit.reports import print_table

        console = stdout()
        print_table([record], console)
        console.print()
        if files is not None:
            told = f"Report: {files.html} (numbers: {files.json}, {files.csv})"
            console.print(told, markup=False, soft_wrap=True)
        else:
            print_next(console, "edgevit", "profile", *map(str, paths), "-o", "report.html")
    if not record.measurements:
        raise typer.Exit(1)

"""edgevit cluster bench: a latency report of a running cluster, by stage and by worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson
from edgevit.cli.cluster import cluster_app
from edgevit.cli.cluster_options import (
    Coordinator,
    InputRef,
    PlanFolder,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    Where,
    warn,
)
from edgevit.cli.device_options import quiet_grpc

if TYPE_CHECKING:
    from edgevit.cli.report import ReportFiles
    from partition.cluster.bench_record import ClusterRun


@cluster_app.command("bench")
def bench(
    plan: PlanFolder,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="report.html; the JSON and the CSV go beside it."),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=100_000, help="Requests to time.")
    ] = 200,
    in_flight: Annotated[
        int, typer.Option("--in-flight", min=1, max=256, help="Requests under way at once.")
    ] = 1,
    photo: Annotated[
        Path | None, typer.Option("--photo", help="The picture to send; default: a random one.")
    ] = None,
    input_ref: InputRef = None,
    coordinator: Coordinator = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Time a running cluster end to end and by stage; name the worker that holds it up."""
    quiet_grpc()
    if photo is not None and input_ref is not None:
        raise typer.BadParameter("--photo is sent, --input-ref is read by the workers: give one")
    from edgevit.cli.predict import prepared
    from edgevit.cli.profile_progress import watching
    from edgevit.cli.report import report_files
    from partition.cluster.bench import BenchOptions
    from partition.cluster.bench import bench as run_bench

    files = report_files(out)
    where = Where(coordinator, tls_ca, tls_cert, tls_key, token_file)
    running = where.running(plan)
    picture = prepared(photo, running.plan.record.preprocessing) if photo is not None else None
    options = BenchOptions(requests, in_flight, picture, input_ref)
    with watching() as tell:
        run = run_bench(running, options, lambda text, done: tell("", text, done))
    if files is not None:
        _write(run, files)
    _warn(run)
    if as_json:
        _print_json(run, files)
    else:
        _show(plan, run, files, where.words())


def _write(run: ClusterRun, files: ReportFiles) -> None:
    """All three files, or none of them."""
    from edgevit.reports.cluster_page import render_cluster
    from edgevit.reports.cluster_table import cluster_csv
    from edgevit.reports.embed import write_files

    numbers = run.model_dump_json(indent=1, exclude_none=True) + "\n"
    write_files({files.json: numbers, files.csv: cluster_csv(run), files.html: render_cluster(run)})


def _warn(run: ClusterRun) -> None:
    degraded = run.group("degraded")
    if degraded is not None:
        missing = sorted({name for sample in run.samples for name in sample.missing})
        warn(
            f"{degraded.latency.n} of {len(run.samples)} answers were degraded, without "
            f"{', '.join(missing)}"
        )
    for error in run.errors:
        warn(f"{error.count} requests got no answer ({error.status}): {error.reason}")


def _print_json(run: ClusterRun, files: ReportFiles | None) -> None:
    from edgevit.cli.output import print_json

    page = str(files.html) if files is not None else ""
    print_json({**run.model_dump(mode="json", exclude_none=True), "report": page})


def _show(plan: Path, run: ClusterRun, files: ReportFiles | None, where: list[str]) -> None:
    from edgevit.cli.output import print_next, stdout
    from edgevit.reports.cluster_table import print_cluster

    console = stdout()
    print_cluster(run, console)
    console.print()
    if files is not None:
        told = f"Report: {files.html} (numbers: {files.json}, {files.csv})"
        console.print(told, markup=False, soft_wrap=True)
    else:
        print_next(console, "edgevit", "cluster", "bench", str(plan), *where, "-o", "report.html")

"""edgevit profile: measure artefacts, here or on devices, interleaved, each in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, Threads, app
from edgevit.cli.device_options import (
    DevicesFile,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    quiet_grpc,
)

if TYPE_CHECKING:
    from edgevit.cli.report import ReportFiles

THREADS = 1
RUNS = 100


@app.command("profile")
def profile(
    paths: Annotated[list[Path], typer.Argument(help="Bundles or artefact files.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="report.html; RUN.json and the CSV go beside it."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="local|NAME|HOST:PORT",
            help="Where to measure, several times for several devices in one report.",
        ),
    ] = None,
    threads: Threads = THREADS,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Samples per artefact.")] = RUNS,
    per_op: Annotated[
        bool, typer.Option("--per-op", help="Time every op too, where the engine can.")
    ] = False,
    devices_file: DevicesFile = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Profile artefacts here or on devices: latency, load, first run, memory, delegation."""
    from edgevit.cli.report import report_files

    files = report_files(out)
    remote = {"--devices": devices_file, "--token-file": token_file, "--tls-ca": tls_ca}
    remote |= {"--tls-cert": tls_cert, "--tls-key": tls_key}
    if not device and any(remote.values()):
        given = ", ".join(flag for flag, value in remote.items() if value)
        raise typer.BadParameter(f"{given}: only with --device, which says where to measure")
    if device:
        quiet_grpc()
        from edgevit.cli.profile_devices import Where, profile_on_devices
        from runtime.client.calls import ProfileOptions
        from runtime.devices.file import AddressOptions

        where = Where(device, devices_file, AddressOptions(tls_ca, tls_cert, tls_key, token_file))
        good = profile_on_devices(
            paths, where, ProfileOptions(threads, runs, per_op), files, as_json
        )
    else:
        good = _profile_here(paths, threads, runs, per_op, files, as_json)
    if not good:
        raise typer.Exit(1)


def _profile_here(
    paths: list[Path],
    threads: int,
    runs: int,
    per_op: bool,
    files: ReportFiles | None,
    as_json: bool,
) -> bool:
    """Measure on this machine; whether anything was measured."""
    from edgevit.cli.output import print_json, print_next, stdout
    from edgevit.cli.profile_progress import watching
    from edgevit.cli.report import write_report
    from runtime.profile_items import items_from
    from runtime.profiler import profile as measure

    items = items_from(paths)
    with watching() as tell:
        record = measure(
            items, threads, runs, per_op=per_op,
            progress=lambda text, done: tell("", text, done),
        )  # fmt: skip
    if files is not None:
        write_report([record], files)
    if as_json:
        page = str(files.html) if files is not None else ""
        print_json({**record.model_dump(mode="json", exclude_none=True), "report": page})
    else:
        from edgevit.reports import print_table

        console = stdout()
        print_table([record], console)
        console.print()
        if files is not None:
            told = f"Report: {files.html} (numbers: {files.json}, {files.csv})"
            console.print(told, markup=False, soft_wrap=True)
        else:
            how = options_as_words(threads, runs, per_op)
            print_next(console, "edgevit", "profile", *map(str, paths), *how, "-o", "report.html")
    return bool(record.measurements)


def options_as_words(threads: int, runs: int, per_op: bool) -> list[str]:
    """The options of a measurement as on the command line; usual ones are left out."""
    words = ["--threads", str(threads)] if threads != THREADS else []
    words += ["--runs", str(runs)] if runs != RUNS else []
    return [*words, "--per-op"] if per_op else words

"""edgevit slim: a smaller network that takes a given time where it will run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from converters.slim.options import SlimOptions
    from converters.slim.record import SlimRecord

# The first to be written into the folder comes after.
BEFORE = frozenset({"pictures"})


@app.command("slim")
def slim(
    model: Annotated[
        str, typer.Argument(help="Where to begin: efficientformer_l1, shvit_s1, network.yaml.")
    ],
    target_latency: Annotated[
        str, typer.Option("--target-latency", help="What the result is to take: 2ms, 800us.")
    ],
    on: Annotated[str, typer.Option("--on", help="The target: tflite, executorch or onnx.")],
    data: Annotated[
        str, typer.Option("--data", help="ImageFolder, .npz, digits or glyphs[:CLASSES[:COUNT]].")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", help="Of a trained network with --no-supernet, else of a supernet."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="local|NAME|HOST:PORT", help="The device it is for."),
    ] = "local",
    objective: Annotated[
        str, typer.Option("--objective", help="latency, or mes for a latency and a size.")
    ] = "latency",
    target_size: Annotated[
        str | None, typer.Option("--target-size", help="Parameters, with mes: 1.5M.")
    ] = None,
    supernet: Annotated[
        bool, typer.Option("--supernet/--no-supernet", help="Train a supernet first.")
    ] = True,
    supernet_epochs: Annotated[
        int, typer.Option("--supernet-epochs", min=1, help="Training of what is slimmed.")
    ] = 30,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Fine-tuning of the result.")] = 30,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Input side, px; default as in train.")
    ] = None,
    threads: Threads = 1,
    table: Annotated[
        Path | None, typer.Option("--table", help="The latency table to use and to add to.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Processes that score candidates.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Score on Ray: HOST:PORT, ray://..., local.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of held-out pictures and trainings.")
    ] = 0,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="How far off the measured latency may be, %.")
    ] = 5.0,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Compare with uniform and random."),
    ] = True,
    devices_file: DevicesFile = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Slim a network to a latency measured on its device; a run cut off goes on where it was."""
    # Before torch is imported, whose threads otherwise wait for each other by spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_grpc()
    from converters.pipeline import check_packages
    from converters.slim.options import SlimOptions, Where, latency_ms, size_m
    from converters.slim.pipeline import slim as run
    from edgevit.cli.job_progress import drawn
    from edgevit.cli.output import print_json
    from edgevit.cli.train import default_size
    from edgevit.data import open_dataset
    from edgevit.reports.slim_page import render_slim
    from runtime.devices.file import LOCAL, AddressOptions

    remote = {"--devices": devices_file, "--token-file": token_file, "--tls-ca": tls_ca}
    remote |= {"--tls-cert": tls_cert, "--tls-key": tls_key}
    if device == LOCAL and any(remote.values()):
        given = ", ".join(flag for flag, value in remote.items() if value)
        raise typer.BadParameter(f"{given}: only with --device, which says where to measure")
    options = SlimOptions(
        target_ms=latency_ms(target_latency), on=on, weights=weights, supernet=supernet,
        objective=objective, target_size_m=None if target_size is None else size_m(target_size),
        supernet_epochs=supernet_epochs, epochs=epochs,
        size=size or default_size(model, open_dataset(data)), threads=threads, seed=seed,
        tolerance=tolerance / 100, baselines=baselines,
        where=Where(device, devices_file, AddressOptions(tls_ca, tls_cert, tls_key, token_file)),
        table=table, jobs=jobs, ray=ray, force=force,
    )  # fmt: skip
    check_packages([on])
    with drawn(out, BEFORE) as progress:
        result = run(model, data, out, options, progress, render_slim)
    following = _next(out, on)
    if as_json:
        told = result.record.model_dump(mode="json")
        print_json({"output": str(out), "record": told, "next": following})
    else:
        _show(result.record, options, out, following)


def _next(out: Path, on: str) -> list[str]:
    return [
        "edgevit", "convert", str(out / "network.yaml"),
        "--weights", str(out / "model.safetensors"), "--labels", str(out / "labels.txt"),
        "--to", on, "-o", f"{out}-bundle",
    ]  # fmt: skip


def _show(record: SlimRecord, options: SlimOptions, out: Path, following: list[str]) -> None:
    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    console.print(_table(record))
    end, result = record.end, record.result
    landing = record.landings[-1]
    console.print(
        f"Measured {landing.measured_ms:.4g} ms on {plain(record.engine)} ({plain(record.device)}, "
        f"{record.threads} thread{'s' if record.threads > 1 else ''}), asked for "
        f"{record.target_ms:.4g} ms; {end.params / 1e6:.2f} M parameters",
        soft_wrap=True,
    )
    error = record.table.error_percent
    if error is not None:
        console.print(
            f"The latency table is off by {error:.1f} % on average, on {record.table.fit_networks} "
            "random networks",
            soft_wrap=True,
        )
    console.print(
        f"Test pictures: top-1 {result.test_top1:.2f} %, top-5 {result.test_top5:.2f} %, after "
        f"{options.epochs} epochs of fine-tuning",
        soft_wrap=True,
    )
    for note in record.notes:
        console.print(f"Note: {plain(note)}", soft_wrap=True)
    console.print(f"\nWrote {out}", markup=False, soft_wrap=True)
    print_next(console, *following)


def _table(record: SlimRecord) -> Any:
    """The way of the search and, beside its end, the best of each baseline."""
    from rich.table import Table

    from edgevit.cli.output import plain
    from edgevit.reports.slim_page import beside_the_end

    table = Table(box=None, pad_edge=False)
    for title in ("step", "action", "predicted ms", "measured ms", "held-out top-1", "params"):
        right = title not in ("step", "action")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for network in [*record.path, *beside_the_end(record)]:
        measured = "–" if network.measured_ms is None else f"{network.measured_ms:.4g}"
        step = str(network.step) if network.way == "search" else network.way
        table.add_row(
            step, plain(network.action), f"{network.predicted_ms:.4g}", measured,
            f"{network.top1:.2f} %", f"{network.params / 1e6:.3f} M",
        )  # fmt: skip
    return table

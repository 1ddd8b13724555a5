"""edgevit convert: a model to one folder of proven artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, app
from edgevit.cli.inspect import MODEL_HELP

if TYPE_CHECKING:
    from runtime.manifest import Manifest

LONGEST_REASON = 300


@app.command("convert")
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option("-o", "--output", help="The bundle folder to write.")],
    to: Annotated[
        str, typer.Option("--to", help="all, or some of coreml,tflite,executorch,onnx.")
    ] = "all",
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Checkpoint (.pth .pt .bin .safetensors) or hf:ORG/NAME."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="One for all targets; default per target.")
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Input height and width, px.")] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Class count.")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Text file, one label a line.")
    ] = None,
    input_dtype: Annotated[
        str, typer.Option("--input", help="float32 in [0, 1], or uint8 pictures.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model to Core ML, TFLite, ExecuTorch and ONNX, each proven against torch."""
    from converters.pipeline import ConvertOptions, failed_targets
    from converters.pipeline import convert as run
    from edgevit.cli.convert_progress import drawn
    from edgevit.cli.output import print_json

    options = ConvertOptions(
        targets=to, weights=weights, precision=precision, size=size, classes=classes,
        labels=labels, input_dtype=input_dtype, force=force,
    )  # fmt: skip
    with drawn() as progress:
        manifest = run(model, out, options, progress)
    failed = failed_targets(manifest)
    if as_json:
        print_json(
            {"bundle": str(out), "failed": failed, "manifest": manifest.model_dump(mode="json")}
        )
    else:
        _show(manifest, out, failed)
    if failed:
        raise typer.Exit(1)


def _show(manifest: Manifest, out: Path, failed: dict[str, str]) -> None:
    from rich.table import Table

    from edgevit.cli.output import megabytes, plain, print_next, stdout, verdict

    console = stdout()
    proof = manifest.reparam
    console.print(
        f"{plain(manifest.model.ref)}: folded {sum(proof.rules.values())} times, graph "
        f"{proof.nodes_before} to {proof.nodes_after} ops, params "
        f"{proof.params_before / 1e6:.2f} to {proof.params_after / 1e6:.2f} M, "
        f"largest difference over the spread {proof.max_rel_float64:.0e} in float64, "
        f"{proof.max_rel_float32:.0e} in float32"
    )
    for note in manifest.model.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if not manifest.model.trained:
        console.print(_untrained(manifest.model.weights), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("target", "file", "size", "precision", "partitions", "seconds", "verified"):
        right = title in ("size", "seconds")
        table.add_column(
            title, justify="right" if right else "left", no_wrap=title != "verified",
            overflow="fold",
        )  # fmt: skip
    for target, a in manifest.artifacts.items():
        islands = str(a.delegation.partitions) if a.delegation else "–"
        seconds = sum(v for k, v in a.timings_s.items() if k != "import")
        table.add_row(
            target, a.file, megabytes(a.size_bytes), a.precision, islands, f"{seconds:.0f}",
            verdict(a.verification),
        )  # fmt: skip
    for target in manifest.failures:
        table.add_row(target, "–", "–", "–", "–", "–", "[red]✗ not converted[/]")
    console.print(table)
    for target, why in failed.items():
        log = manifest.failures[target].log if target in manifest.failures else None
        console.print(
            f"[red]{target} failed[/]: {plain(_first_line(why))}"
            + (f" (log: {plain(out / log)})" if log else ""),
            soft_wrap=True,
        )
    console.print(
        f"\nWrote {out} in {manifest.timings_s['total']:.0f} s", markup=False, soft_wrap=True
    )
    print_next(console, "edgevit", "profile", str(out), "-o", "report.html")


def _untrained(weights: str) -> str:
    from converters.refs.grammar import RANDOM
    from edgevit.cli.output import plain

    if weights == RANDOM:
        return (
            f"[yellow]weights are {plain(weights)}[/]: fit for latency, not for accuracy; "
            "--weights FILE loads a checkpoint"
        )
    return "[yellow]the head is random[/]: fit for latency, not for accuracy, until it is trained"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:LONGEST_REASON]

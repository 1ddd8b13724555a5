"""edgevit inspect: what a model is made of and what conversion will do with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
    from converters.inspection import Inspection

MODEL_HELP = "shvit_s1, timm:NAME, package.module:factory, file.pt2 or network.yaml."


@app.command("inspect")
def inspect(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    size: Annotated[int | None, typer.Option("--size", help="Input height and width, px.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show layers, MACs, what folding will do, and what each target will not take whole."""
    from converters.inspection import inspect_model
    from edgevit.cli.output import print_json

    found = inspect_model(model, size)
    if as_json:
        print_json({**asdict(found), "proof": found.proof.model_dump()})
    else:
        _show(found)


def _show(found: Inspection) -> None:
    from rich.table import Table

    from edgevit.cli.output import plain, print_next, stdout

    console, proof = stdout(), found.proof
    console.print(
        f"{plain(found.ref)}: input {plain(list(found.input_shape))}, {found.classes} classes, "
        f"{proof.params_before / 1e6:.2f} M params, {proof.macs_before / 1e9:.3f} G MACs"
    )
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print()
    layers = Table(box=None, pad_edge=False)
    layers.add_column("layer")
    layers.add_column("kind")
    layers.add_column("params M", justify="right")
    layers.add_column("MACs M", justify="right")
    for layer in found.layers:
        layers.add_row(
            plain(layer.name),
            plain(layer.kind),
            f"{layer.params / 1e6:.3f}",
            f"{layer.macs / 1e6:.1f}",
        )
    console.print(layers)
    console.print(
        f"\nFolding: graph {proof.nodes_before} to {proof.nodes_after} ops, params "
        f"{proof.params_before / 1e6:.2f} to {proof.params_after / 1e6:.2f} M, largest difference "
        f"over the spread {proof.max_rel_float64:.0e} (float64)"
    )
    for rule, count in proof.rules.items():
        console.print(f"  {count:>4} x {plain(rule)}")
    console.print("\nOps before and after folding:")
    for op, count in found.ops_before.items():
        console.print(f"  {plain(op):<24}{count:>5} {found.ops_after.get(op, 0):>5}")
    console.print("\nWhat the engines will not take whole (a forecast; `convert` measures):")
    for target, limits in found.limits.items():
        for why, count in limits.items():
            console.print(f"  {target:<11}{count:>4} x {plain(why)}")
        if not limits:
            console.print(f"  {target:<11}nothing known")
    console.print()
    print_next(console, "edgevit", "convert", found.ref, "--to", "all", "-o", "out")

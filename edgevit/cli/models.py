"""edgevit models: the zoo."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edgevit.cli.app import AsJson, app


@app.command("models")
def models(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo: params, MACs, input, published accuracy and latency."""
    from edgevit.cli.output import print_json, print_next, stdout
    from edgevit.models import ModelError, list_models, model_config
    from edgevit.models.registry import nearest_names

    configs = [model_config(name) for name in list_models(pattern)]
    if not configs:
        near = nearest_names(pattern, list_models())
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ModelError(f"no model matches '{pattern}'; {hint}`edgevit models` lists all")
    if as_json:
        print_json({"models": [asdict(c) for c in configs]})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "params M", "MACs G", "input", "top-1 % (published)"):
        left = title == "model"
        table.add_column(title, justify="left" if left else "right", no_wrap=left)
    table.add_column("latency (published)")
    for c in configs:
        top1 = f"{c.top1:.1f}" if c.top1 is not None else "–"
        latency = "; ".join(f"{x.ms:g} ms {x.what}" for x in c.latencies) or "–"
        table.add_row(
            c.name, f"{c.params_m:.2f}", f"{c.macs_g:.3f}", str(c.input_size), top1, latency
        )
    console = stdout()
    console.print(table)
    console.print("\nSources: `edgevit models --json`.")
    print_next(console, "edgevit", "convert", configs[0].name, "--to", "all", "-o", "out")

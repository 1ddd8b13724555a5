"""edgevit models: the zoo."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
    from edgevit.models import ModelConfig


@app.command("models")
def models(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo: params, MACs, input, published accuracy and latency."""
    from edgevit.cli.output import print_json
    from edgevit.models import ModelError, list_models, model_config
    from edgevit.models.registry import nearest_names

    configs = _by_family([model_config(name) for name in list_models(pattern)])
    if not configs:
        near = nearest_names(pattern, list_models())
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ModelError(f"no model matches '{pattern}'; {hint}`edgevit models` lists all")
    if as_json:
        print_json({"models": [_entry(c) for c in configs]})
    else:
        _show(configs)


def _by_family(configs: list[ModelConfig]) -> list[ModelConfig]:
    """Families side by side, in the order of their first names; names keep their order inside."""
    families = list(dict.fromkeys(c.family for c in configs))
    return sorted(configs, key=lambda c: families.index(c.family))


def _entry(config: ModelConfig) -> dict[str, Any]:
    return {**asdict(config), "latencies": [x._asdict() for x in config.latencies]}


def _show(configs: list[ModelConfig]) -> None:
    from rich.table import Table

    from edgevit.cli.output import plain, print_next, stdout

    sources: list[str] = []

    def cite(source: str | None) -> str:
        """The number under which the source stands below the table."""
        if source is None:
            return ""
        if source not in sources:
            sources.append(source)
        return f" \\[{sources.index(source) + 1}]"

    table = Table(box=None, pad_edge=False)
    for title in ("model", "params M", "MACs G", "input px", "top-1 %"):
        left = title == "model"
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    table.add_column("latency per image")
    family = configs[0].family
    for c in configs:
        if c.family != family:
            table.add_section()
            table.add_row()
            family = c.family
        top1 = f"{c.top1:.1f}{cite(c.top1_source)}" if c.top1 is not None else "–"
        latency = "\n".join(f"{x.ms:g} ms {plain(x.what)}{cite(x.source)}" for x in c.latencies)
        table.add_row(
            plain(c.name), f"{c.params_m:.2f}", f"{c.macs_g:.3f}", _sides(c), top1, latency or "–"
        )
    console = stdout()
    console.print(table)
    console.print(
        "\nParams and MACs are counted: training form, batch 1, at the input's side.\n"
        "Top-1 (ImageNet-1k) and latency are published figures; – where there is none.\n"
        "Input: the published side; --size takes any other, or any multiple (x32: of 32).\n"
    )
    for number, source in enumerate(sources, 1):
        console.print(f"\\[{number}] {plain(source)}")
    console.print()
    print_next(console, "edgevit", "convert", configs[0].name, "--to", "all", "-o", "out")


def _sides(config: ModelConfig) -> str:
    others = f"x{config.size_multiple}" if config.size_multiple > 1 else "any"
    return f"{config.input_size}, {others}"

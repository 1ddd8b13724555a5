"""edgevit eval: how often a model and its artefacts are right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, Threads, app

if TYPE_CHECKING:
    from edgevit.evaluation import EvalOptions, Evaluation, Result, Share


LABELS = "labels.txt"  # beside the weights, where `edgevit train` puts it


@app.command("eval")
def evaluate(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL|ARTIFACT|BUNDLE", help="What to evaluate.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", help="A folder of class folders, an .npz, digits, or glyphs[:36]."),
    ],
    split: Annotated[str, typer.Option("--split", help="train, test or all.")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many pictures.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Checkpoint (.pth .pt .bin .safetensors) or hf:ORG/NAME."),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="A model's input side, px.")] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="A model's class count.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures at once in torch.")] = 32,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Top-1 and top-5 of torch and of artefacts on their engines, and how far they agree."""
    from edgevit.cli.output import print_json
    from edgevit.evaluation import EvalOptions

    options = EvalOptions(split, limit, weights, classes, size, batch, threads)
    found = _watched(subject, data, options)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found, _given(weights, size, found.classes))
    status = {result.status for result in found.results}
    if "failed" in status or "evaluated" not in status:
        raise typer.Exit(1)


def _watched(subject: str, data: str, options: EvalOptions) -> Evaluation:
    """Evaluate, with a progress bar on stderr where somebody watches."""
    from edgevit.cli.output import stderr
    from edgevit.evaluation import evaluate as run

    console = stderr()
    if not console.is_terminal:
        return run(subject, data, options)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("load", total=None)
        return run(
            subject, data, options,
            lambda done, total: bar.update(
                task, description="evaluate", completed=done, total=total
            ),
        )  # fmt: skip


def _given(weights: str | None, size: int | None, classes: int) -> list[str]:
    """What `edgevit convert` has to be told to make this model again."""
    words = ["--size", str(size)] if size is not None else []
    if weights is not None:
        words += ["--weights", weights, "--classes", str(classes)]
        labels = Path(weights).with_name(LABELS)
        words += ["--labels", str(labels)] if labels.is_file() else []
    return words


def _show(found: Evaluation, given: list[str]) -> None:
    from rich.table import Table

    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    of = f" of {found.available}" if found.pictures < found.available else ""
    console.print(
        f"{plain(found.data)}, split {found.split}: {found.pictures}{of} pictures, "
        f"{found.classes} classes; {plain(found.labels)}\n",
        soft_wrap=True,
    )
    measured = [r for r in found.results if r.status == "evaluated"]
    if measured:
        same = {(a.first, a.second): a for a in found.agreements}
        base = measured[0].name
        table = Table(box=None, pad_edge=False)
        for title in ("", "top-1 % (95 % interval)", "top-5 %"):
            table.add_column(title, justify="left" if not title else "right", no_wrap=True)
        if len(measured) > 1:
            table.add_column(f"same top-1 as {base}", justify="right", no_wrap=True)
        table.add_column("engine")
        for result in measured:
            cells = [_named(result), _percent(result.top1), _percent(result.top5)]
            if len(measured) > 1:
                pair = same.get((base, result.name))
                cells.append(f"{pair.same} of {pair.of}" if pair else "–")
            table.add_row(*cells, f"{result.engine} {result.engine_version}")
        console.print(table)
    for result in found.results:
        if result.status != "evaluated":
            mark = "[red]✗[/]" if result.status == "failed" else "[yellow]–[/]"
            console.print(f"{_named(result)}  {mark} {plain(result.reason)}", soft_wrap=True)
    _show_the_rest(found, measured)
    console.print()
    if not measured:
        console.print("Nothing was evaluated: nothing of it runs here")
        return
    if any(r.name != "torch" for r in measured):
        print_next(console, "edgevit", "profile", found.subject, "-o", "report.html")
    else:
        print_next(console, "edgevit", "convert", found.subject, *given, "--to", "all", "-o", "out")


def _show_the_rest(found: Evaluation, measured: list[Result]) -> None:
    """The agreement of artefacts with each other, and what a reader has to know."""
    from edgevit.cli.output import plain, stdout

    console = stdout()
    base = measured[0].name if measured else ""
    among = [a for a in found.agreements if base not in (a.first, a.second)]
    if among:
        least = min(among, key=lambda a: a.same)
        console.print(
            f"Among the others at least {least.same} of {least.of} agree "
            f"({least.first} and {least.second})"
        )
    if found.trained is False:
        console.print(
            "[yellow]the weights are random[/]: these accuracies say nothing about the model"
        )
    for note in found.notes:
        console.print(f"Note: {plain(note)}", soft_wrap=True)


def _named(result: Result) -> str:
    return f"{result.name} {result.precision}" if result.precision else result.name


def _percent(found: Share | None) -> str:
    """'97.2 (96.1 to 98.0)', or a dash where five guesses are all there are."""
    if found is None:
        return "–"
    return f"{found.fraction:.1%} ({found.low:.1%} to {found.high:.1%})".replace("%", "")

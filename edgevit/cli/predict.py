"""edgevit predict: the top classes of pictures, from an artefact on its engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.app import AsJson, Threads, app

if TYPE_CHECKING:
    from rich.table import Table

    from runtime.manifest import Preprocessing
    from runtime.predict import Guess, Predictor


@app.command("predict")
def predict(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE|ARTIFACT", help="A bundle or an artefact file.")
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show.")] = 5,
    target: Annotated[
        str | None,
        typer.Option("--target", help="tflite, onnx, executorch or coreml; default the first."),
    ] = None,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Show the likeliest classes of pictures; needs no torch for tflite and onnx."""
    from edgevit.cli.output import print_json
    from runtime.predict import open_predictor

    predictor = open_predictor(path, target, threads)
    try:
        found = [
            (picture, predictor.top(prepared(picture, predictor.preprocessing), top))
            for picture in pictures
        ]
    finally:
        predictor.close()
    if as_json:
        print_json(_as_json(predictor, found))
    else:
        _show(predictor, found, path)


def prepared(picture: Path, pre: Preprocessing) -> Any:
    """The picture as the model sees it, (H, W, 3) float32 in [0, 1]."""
    from edgevit.data import prepare, read_picture

    return prepare(
        read_picture(picture, upright=True), pre.height, pre.width, pre.crop_pct, pre.interpolation
    )


def _as_json(predictor: Predictor, found: list[tuple[Path, list[Guess]]]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "artifact": str(predictor.path),
        "target": predictor.target,
        "model": predictor.model,
        "precision": predictor.precision,
        "engine": f"{predictor.session.engine} {predictor.session.engine_version}",
        "threads": predictor.session.threads,
        "trained": predictor.trained,
        "probability": "softmax of the logits",
        "skipped": predictor.skipped,
        "notes": predictor.notes,
        "predictions": [
            {"picture": str(picture), "top": [asdict(guess) for guess in guesses]}
            for picture, guesses in found
        ],
    }


def _show(predictor: Predictor, found: list[tuple[Path, list[Guess]]], path: Path) -> None:
    from edgevit.cli.output import plain, print_next, stdout

    console, session = stdout(), predictor.session
    for picture, guesses in found:
        console.print(str(picture), markup=False, soft_wrap=True)
        console.print(table_of(guesses))
        console.print()
    what = " ".join(
        plain(part) for part in (predictor.model, predictor.target, predictor.precision) if part
    )
    console.print(
        f"{what} on {session.engine} {session.engine_version}; the probability is the softmax of "
        "the logits",
        soft_wrap=True,
    )
    for name, why in predictor.skipped.items():
        console.print(f"[yellow]{name} left out[/]: {plain(why)}", soft_wrap=True)
    for note in predictor.notes:
        console.print(f"[yellow]note[/]: {plain(note)}", soft_wrap=True)
    if predictor.trained is False:
        console.print("[yellow]the weights are random[/]: these classes mean nothing")
    if predictor.labels is None:
        console.print("no labels: `edgevit convert --labels FILE` puts names into the bundle")
    print_next(console, "edgevit", "profile", str(path), "-o", "report.html")


def table_of(guesses: list[Guess]) -> Table:
    """The guesses for a person."""
    from rich.table import Table

    from edgevit.cli.output import plain

    table = Table(box=None, pad_edge=False)
    table.add_column("probability", justify="right")
    table.add_column("class", overflow="fold")
    for guess in guesses:
        name = plain(guess.label) if guess.label is not None else f"class {guess.index}"
        table.add_row(_percent(guess.probability), name)
    return table


def _percent(share: float) -> str:
    """A share of 1 as percent, never rounded to nothing."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"

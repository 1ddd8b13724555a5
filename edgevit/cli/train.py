"""edgevit train: a network on labelled pictures, to a checkpoint that convert takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
    from edgevit.data import Dataset
    from edgevit.training import EpochRow, Progress, Step, TrainResult

SMALL_TIMES = 2
MULTIPLE = 32


@app.command("train")
def train(
    model: Annotated[
        str, typer.Argument(help="shvit_s1, timm:NAME, package.module:factory or network.yaml.")
    ],
    data: Annotated[
        str, typer.Option("--data", help="ImageFolder, .npz, digits or glyphs[:CLASSES[:COUNT]].")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Start from (.pth .pt .bin .safetensors) or hf:ORG/NAME."),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 30,
    batch: Annotated[
        int, typer.Option("--batch", min=2, help="Pictures a step, all processes together.")
    ] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 2e-3,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Input side, px; default by the pictures.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of order, augmentation and mixup.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default torch's.")
    ] = None,
    limit_time: Annotated[
        float | None, typer.Option("--limit-time", min=0, help="Minutes; begin no epoch beyond.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier; torchrun -m edgevit train ... for several GPUs."""
    # Before torch is imported, whose threads otherwise wait for each other by spinning: where other
    # programs want the cores too, they spin away the time in which the one they wait for would run.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from converters.chatter import chatter_to
    from converters.refs.grammar import Kind, kind_of
    from converters.source import load_source
    from edgevit.cli.output import print_json
    from edgevit.data import at_size, open_splits
    from edgevit.training import Preprocess, TrainingError, TrainOptions
    from edgevit.training import train as run

    if kind_of(model) is Kind.PROGRAM:
        raise TrainingError(
            f"{model} is an exported program, which cannot be trained; give a model"
        )
    # Always the split of seed 0, so that `edgevit eval` holds out the same pictures.
    splits = open_splits(data)
    size = size or default_size(model, splits[0])
    classes = len(splits[0].classes)
    with chatter_to(None):  # the model's own code may print
        source = load_source(model, weights=weights, size=size, classes=classes, settle=False)
    pre = source.preprocessing
    options = TrainOptions(
        preprocess=Preprocess(
            pre.height, pre.width, tuple(pre.mean), tuple(pre.std), pre.crop_pct, pre.interpolation
        ),
        epochs=epochs, batch=batch, lr=lr, seed=seed, threads=threads, resume=resume,
        time_limit_s=None if limit_time is None else 60 * limit_time,
        facts={"model": model, "weights": source.weights, "weights_sha256": source.weights_sha256,
               "data": data, "data_seed": 0, "source_notes": source.notes},
    )  # fmt: skip
    data_train, data_test = (at_size(split, pre.height, pre.width) for split in splits)
    with drawn() as progress, chatter_to(None):
        result = run(source.module, data_train, data_test, options, out, progress=progress)
    end_processes()
    if not is_first():
        return
    following = convert_command(model, out, classes, pre.height)
    if as_json:
        print_json(_as_json(result, source.notes, following))
    else:
        _show(result, source.notes, following)


def default_size(model: str, data: Dataset) -> int | None:
    """Twice the side of small pictures, since these networks halve it five or six times; else None.

    In pixels, a multiple of 32. Only for models of the zoo: of others, which sizes they take is not
    known here. Raises ModelError for a name that the zoo does not have.
    """
    from converters.refs.grammar import Kind, kind_of
    from edgevit.models import model_config

    if kind_of(model) is not Kind.ZOO:
        return None
    side = min(data[0][0].shape[:2])
    doubled = -(-SMALL_TIMES * side // MULTIPLE) * MULTIPLE
    return doubled if doubled < model_config(model).input_size else None


@contextmanager
def drawn() -> Iterator[Progress]:
    """A progress listener: a bar for the steps of an epoch, and a line for each epoch."""
    from edgevit.cli.output import stderr
    from edgevit.training import EpochRow, silent

    console = stderr()
    if not console.is_terminal or not is_first():
        yield silent
        return
    from rich.progress import Progress as Bars

    with Bars(console=console, transient=True) as bars:
        task = bars.add_task("begin", total=None)

        def tell(event: Step | EpochRow) -> None:
            if isinstance(event, EpochRow):
                ema = "" if event.ema_top1 is None else f", EMA {event.ema_top1:.2f}"
                bars.console.print(
                    f"epoch {event.epoch}: loss {event.train_loss:.3f}, held out "
                    f"{event.val_loss:.3f}, top-1 {event.top1:.2f}{ema} % ({event.seconds:.0f} s)"
                )
            else:
                text = f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}"
                bars.update(task, description=text, completed=event.step, total=event.steps)

        yield tell


def is_first() -> bool:
    """Whether this is the one process, of all that torchrun started, that speaks."""
    return os.environ.get("RANK", "0") == "0"


def end_processes() -> None:
    """Close the group of a run on several processes, which else complains as it ends."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def convert_command(model: str, out: Path, classes: int, size: int) -> list[str]:
    """The command line that turns the checkpoint into a bundle."""
    return [
        "edgevit", "convert", model, "--weights", str(out / "model.safetensors"),
        "--classes", str(classes), "--size", str(size), "--labels", str(out / "labels.txt"),
        "-o", f"{out}-bundle",
    ]  # fmt: skip


def _as_json(result: TrainResult, notes: tuple[str, ...], following: list[str]) -> dict[str, Any]:
    scores = result.best.scores
    return {
        "checkpoint": str(result.out),
        "finished": result.finished,
        "best": asdict(result.best)
        | {"top1_percent": scores.top1_percent, "top5_percent": scores.top5_percent},
        "last": asdict(result.rows[-1]),
        "epochs": len(result.rows),
        "seconds": result.seconds,
        "notes": [*notes, *result.notes],
        "next": following,
    }


def _show(result: TrainResult, notes: tuple[str, ...], following: list[str]) -> None:
    from edgevit.cli.output import plain, print_next, stdout

    console, best = stdout(), result.best
    scores = best.scores
    console.print(
        f"Held out: top-1 {scores.top1_percent:.2f} % ({scores.top1} of {scores.count}), top-5 "
        f"{scores.top5_percent:.2f} %, epoch {best.epoch} of {len(result.rows)}, "
        f"{result.seconds:.0f} s",
        soft_wrap=True,
    )
    for note in (*notes, *result.notes):
        console.print(f"Note: {plain(note)}", soft_wrap=True)
    console.print(f"\nWrote {result.out}", markup=False, soft_wrap=True)
    print_next(console, *following)

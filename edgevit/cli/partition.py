"""edgevit partition: a trained ViT, split by classes over the devices of a cluster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.app import AsJson, app

if TYPE_CHECKING:
    from partition.plan import Plan, PlanRecord


class AnswerOf(StrEnum):
    """What a sub-model sends to the fusion."""

    FEATURES = "features"
    LOGITS = "logits"


@app.command("partition")
def partition(
    model: Annotated[
        str, typer.Argument(help="A plain ViT: vit_tiny, deit_small, PACKAGE:FACTORY.")
    ],
    data: Annotated[
        str, typer.Option("--data", help="ImageFolder, .npz, digits or glyphs[:CLASSES[:COUNT]].")
    ],
    cluster: Annotated[Path, typer.Option("--cluster", help="The devices: cluster.yaml.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The plan's folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Checkpoint (.pth .pt .bin .safetensors) or hf:ORG/NAME."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Input side, px; default as in train.")
    ] = None,
    split: Annotated[
        str,
        typer.Option("--split", help="balanced, contiguous, importance, or a file of class lists."),
    ] = "balanced",
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Heads to keep at most; default what fits.")
    ] = None,
    answer: Annotated[
        AnswerOf, typer.Option("--answer", help="What sub-models send to the fusion.")
    ] = AnswerOf.FEATURES,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Fine-tuning of each sub-model.")
    ] = 30,
    fusion_epochs: Annotated[
        int, typer.Option("--fusion-epochs", min=1, help="Training of the fusion head.")
    ] = 30,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of split, views and order.")] = 0,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Sub-models at a time; default one a core.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Sub-models on Ray: HOST:PORT, ray://..., local.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each job.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Split, prune, fine-tune, convert and place; a run that was cut off goes on where it was."""
    from edgevit.cli.job_progress import drawn
    from edgevit.cli.output import print_json
    from edgevit.cli.train import default_size
    from edgevit.data import open_dataset
    from partition.options import PartitionOptions
    from partition.pipeline import partition as run

    options = PartitionOptions(
        split=split, seed=seed, keep=keep, epochs=epochs, fusion_epochs=fusion_epochs,
        answer=answer.value, size=size or default_size(model, open_dataset(data)),
        jobs=jobs, ray=ray, threads=threads, force=force,
    )  # fmt: skip
    with drawn(out) as progress:
        plan = run(model, weights, data, cluster, out, options, progress)
    if as_json:
        print_json(
            {
                "plan": str(out),
                "digest": plan.digest,
                "record": plan.record.model_dump(mode="json"),
                "next": _next(out),
            }
        )
    else:
        _show(plan, out)


def _next(out: Path) -> list[str]:
    return ["edgevit", "cluster", "launch", str(out)]


def _show(plan: Plan, out: Path) -> None:
    from rich.table import Table

    from edgevit.cli.output import megabytes, plain, print_next, stdout

    console, record = stdout(), plan.record
    table = Table(box=None, pad_edge=False)
    for title in (
        "sub-model",
        "classes",
        "heads",
        "params",
        "size",
        "own top-1",
        "device",
        "copies",
    ):
        right = title in ("heads", "params", "size", "own top-1")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for part in record.submodels:
        table.add_row(
            part.name,
            plain(", ".join(record.labels[c] for c in part.classes)),
            f"{part.geometry.heads} of {record.model.geometry.heads}",
            f"{part.params / 1e6:.2f} M",
            megabytes(part.memory),
            f"{record.accuracy.submodels[part.name]:.2f} %",
            plain(part.primary),
            plain(", ".join(part.replicas)) or "–",
        )
    console.print(table)
    _show_accuracy(record)
    slowest = max(record.devices, key=lambda device: device.latency)
    measured = "measured" if slowest.measured else "given"
    console.print(
        f"Predicted for one picture: {1e3 * slowest.latency:.3g} ms on {plain(slowest.name)}, the "
        f"slowest device, its link included, at {measured} {slowest.macs_per_s / 1e9:.3g} GMAC/s; "
        f"the whole model would compute there for "
        f"{1e3 * record.model.macs / slowest.macs_per_s:.3g} ms. Placement: {record.placed.method}",
        soft_wrap=True,
    )
    console.print(f"\nWrote {out} ({record.digest[:12]})", markup=False, soft_wrap=True)
    print_next(console, *_next(out))


def _show_accuracy(record: PlanRecord) -> None:
    from edgevit.cli.output import plain, stdout

    console, accuracy = stdout(), record.accuracy
    largest = max(part.memory for part in record.submodels)
    console.print(
        f"\nTop-1 on {accuracy.pictures} held-out pictures: whole model {accuracy.full:.2f} %, "
        f"fused {accuracy.fused:.2f} %; the largest sub-model is "
        f"{record.model.bytes / largest:.1f} times smaller",
        soft_wrap=True,
    )
    for case in accuracy.without:
        blind = ", ".join(record.labels[c] for c in case.blind)
        console.print(
            f"  without {', '.join(case.lost)}: {case.top1:.2f} % (blind for {plain(blind)})",
            soft_wrap=True,
        )
    served = accuracy.served
    if served is not None:
        console.print(
            f"Artefacts on their engines with the fusion in numpy: same answer as torch on "
            f"{served.same_top1} of {served.pictures} pictures, error/spread "
            f"{served.error_over_spread:.1e}",
            soft_wrap=True,
        )

"""The steps of a sub-model after pruning: fine-tuning it and converting it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partition.making.original import data_for, load_original, read_about
from partition.making.steps import Tell

SUBMODEL = "submodel.safetensors"
BUNDLE = "bundle"
OTHER = "other"


def train_submodel(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Cut the sub-model out of the original, and teach it its classes anew."""
    from edgevit.training import EpochRow
    from edgevit.training import Step as Batch
    from partition.cutting.submodel import Submodel
    from partition.learning.distill import Views
    from partition.learning.train import TuneOptions, fine_tune
    from partition.making.prune_tasks import read_kept

    original = load_original(inputs["original"])
    train, _ = data_for(settings, original)
    submodel = Submodel.cut(original.model, read_kept(inputs["pruned"]), settings["classes"])
    options = TuneOptions(
        views=Views(original.preprocess, seed=settings["seed"]),
        epochs=settings["epochs"],
        threads=settings["threads"],
    )

    def told(event: Batch | EpochRow) -> None:
        if isinstance(event, Batch):
            done = (event.epoch - 1 + event.step / event.steps) / event.epochs
            tell(done, f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}")

    fine_tune(
        submodel, original.model, train, options, state=Path(settings["state"]), progress=told
    )
    submodel.save(out / SUBMODEL)


def make_bundle(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Convert the trained sub-model with the answer that the fusion takes."""
    from partition.cutting.submodel import Submodel
    from partition.making.bundles import convert_module

    about = read_about(inputs["original"])
    submodel = Submodel.load(inputs["trained"] / SUBMODEL)
    submodel.answer = settings["answer"]
    known = ", ".join(settings["labels"])
    logits = settings["answer"] == "logits"
    what = (
        f"the output is logits: 'other', then the classes {known}"
        if logits
        else f"the output is the class token of {submodel.width} numbers, for a fusion head; there "
        f"are no logits. It was trained on the classes {known}"
    )
    convert_module(
        submodel, about, out / BUNDLE,
        ref=f"{about.ref}/{settings['name']}",
        notes=(f"a sub-model of {about.ref}, made by edgevit partition", what),
        answers=submodel.outputs, targets=settings["targets"], jobs=settings["jobs"],
        labels=[OTHER, *settings["labels"]] if logits else None, tell=tell,
    )  # fmt: skip

"""A module of the partitioner to a bundle, with a manifest that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from converters.errors import ConvertError
from converters.pipeline import ConvertOptions, convert, failed_targets
from converters.progress import Event
from converters.refs.base import Source
from partition.making.original import About
from partition.making.steps import Tell
from runtime.manifest import Manifest

LABELS = "labels.txt"
STAGES, STAGES_OF_A_TARGET = 4, 2  # of a conversion: load, export, fold, write; lower, verify


def convert_module(
    module: nn.Module,
    about: About,
    out: Path,
    *,
    ref: str,
    notes: Sequence[str],
    answers: int,
    targets: Sequence[str],
    jobs: int,
    labels: Sequence[str] | None = None,
    tell: Tell,
) -> Manifest:
    """Convert a module that takes the original's pictures and gives (1, answers) numbers.

    ref is what the manifest calls it, and labels the names of the answers where they are logits;
    jobs targets convert side by side; tell gets the share that is done. Raises ConvertError where a
    target fails: a plan has every artefact that its devices ask for, each verified.
    """
    source = Source(
        ref=ref,
        module=module.eval(),
        preprocessing=about.preprocessing,
        num_classes=answers,
        family=about.family,
        weights=f"fine-tuned from {about.weights}",
        weights_sha256="",
        trained=True,
        notes=tuple(notes),
    )
    names = out.parent / f"{out.name}-{LABELS}"
    try:
        if labels is not None:
            names.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        options = ConvertOptions(
            targets=list(targets), labels=None if labels is None else names, jobs=jobs
        )
        ended = 0

        def news(event: Event) -> None:
            nonlocal ended
            ended += event.seconds is not None or event.error is not None
            what = f"{event.stage.value} {event.target or ''}".strip()
            tell(min(1.0, ended / (STAGES + STAGES_OF_A_TARGET * len(targets))), what)

        manifest = convert(source, out, options, news)
    finally:
        names.unlink(missing_ok=True)
    failed = failed_targets(manifest)
    if failed:
        told = "\n".join(f"  {target}: {why}" for target, why in failed.items())
        error = ConvertError(f"{ref} did not convert to every target of the cluster:\n{told}")
        error.exit_code = 1
        raise error
    return manifest

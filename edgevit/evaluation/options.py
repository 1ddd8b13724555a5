"""What `edgevit eval` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvalOptions:
    """split is "train", "test" or "all"; limit is the most pictures, drawn from the whole split.

    weights (a file or hf:REPO), classes and size (pixels) are those of a model; a bundle knows its
    own. batch is torch's; an artefact takes one picture at a time. threads are each engine's.
    """

    split: str = "test"
    limit: int | None = None
    weights: str | None = None
    classes: int | None = None
    size: int | None = None
    batch: int = 32
    threads: int = 1

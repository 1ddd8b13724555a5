"""The steps up to the pruned sub-model: importance for its classes, choice, slicing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevit.data import Dataset
from edgevit.training import Preprocess
from edgevit.training.files import read_tensors, write_json, write_tensors
from edgevit.training.loader import evaluation_batches
from partition.cutting.geometry import Keep
from partition.cutting.importance import Importance, class_importance
from partition.cutting.slicing import Kept, choose
from partition.learning.distill import labels_of
from partition.making.original import Original, data_for, load_original
from partition.making.steps import Tell

BATCH = 32
IMPORTANCE, KEPT, CLASSES = "importance.safetensors", "kept.json", "classes.npy"


@dataclass(frozen=True)
class Some:
    """A part of a dataset, in the order of `indices`."""

    data: Dataset
    indices: NDArray[np.int64]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.data[int(self.indices[index])]


def measure_importance(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Importance for the pictures of `classes`, at most `pictures` of them, drawn by `seed`."""
    original = load_original(inputs["original"])
    train, _ = data_for(settings, original)
    found = importance_of(
        original, train, settings["classes"], settings["pictures"], settings["seed"], tell
    )
    tensors = {"residual": found.residual, "heads": found.heads, "ffn": found.ffn}
    write_tensors(out / IMPORTANCE, tensors, json.dumps({"pictures": found.pictures}))


def measure_classes(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Importance of channels and heads for each class alone, a row each, to split classes by."""
    original = load_original(inputs["original"])
    train, _ = data_for(settings, original)
    count = original.about.geometry.classes
    rows = []
    for label in range(count):

        def told(share: float, text: str, begun: int = label) -> None:
            tell((begun + share) / count, f"class {begun + 1} of {count}")

        found = importance_of(
            original, train, [label], settings["pictures"], settings["seed"], told
        )
        rows.append(torch.cat([found.residual, found.heads.flatten()]).numpy())
    np.save(out / CLASSES, np.stack(rows))


def prune(settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Choose what to keep: `heads` of each block, and the same share of all other widths."""
    tensors, about = read_tensors(inputs["importance"] / IMPORTANCE)
    importance = Importance(
        tensors["residual"], tensors["heads"], tensors["ffn"], json.loads(about)["pictures"]
    )
    kept = choose(importance, Keep(settings["heads"]))
    write_json(out / KEPT, kept.as_json())


def read_kept(folder: Path) -> Kept:
    """What `prune` chose."""
    return Kept.from_json(json.loads((folder / KEPT).read_text(encoding="utf-8")))


def kept_digest(kept: Kept) -> str:
    """sha256 over the kept indices."""
    return hashlib.sha256(json.dumps(kept.as_json(), sort_keys=True).encode()).hexdigest()


def importance_of(
    original: Original,
    data: Dataset,
    classes: Sequence[int],
    pictures: int,
    seed: int,
    tell: Tell,
) -> Importance:
    """Importance of the original's gates for at most so many pictures of the classes."""
    mine = np.flatnonzero(np.isin(labels_of(data), classes))
    if len(mine) > pictures:
        mine = np.sort(np.random.default_rng(seed).permutation(mine)[:pictures])
    chosen = Some(data, mine)
    return class_importance(
        original.model,
        batches(chosen, original.preprocess),
        seed=seed,
        tell=lambda done: tell(done / max(len(mine), 1), "importance"),
    )


def batches(
    data: Any, preprocess: Preprocess, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised pictures (B, 3, H, W) and labels (B,), in order."""
    with closing(evaluation_batches(data, preprocess, batch, 0, 1)) as found:
        for x_BCHW, labels in found:
            yield x_BCHW, torch.tensor([int(label) for label in labels])

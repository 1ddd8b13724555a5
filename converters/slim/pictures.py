"""The pictures of a search: some to settle BatchNorm and importance on, some to score subnets on.

All are training pictures. Those that score are held out of every training of the search; the
data's test pictures are used once, for the result.
"""

# Shapes: N pictures, H height, W width, C channels (RGB), B batch.

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.slim.errors import SlimError
from edgevit.data import Dataset, prepare
from edgevit.training import Preprocess

FILE = "pictures.npz"
HELD_SHARE, HELD_MOST = 0.2, 2000
SETTLE_MOST = 512
BATCH = 64


class Part:
    """Some examples of a dataset, by their indices."""

    def __init__(self, data: Dataset, indices: NDArray[np.int64]) -> None:
        self.data, self.indices, self.classes = data, indices, data.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.data[int(self.indices[index])]


def held_out(data: Dataset, seed: int) -> tuple[Part, Part]:
    """Training pictures in two: those to train on, and those to score on, drawn by the seed.

    Raises SlimError for too few.
    """
    count = min(HELD_MOST, round(HELD_SHARE * len(data)))
    if count < len(data.classes) or len(data) - count < 2:
        raise SlimError(
            f"the data has {len(data)} training pictures of {len(data.classes)} classes: too few "
            "to hold some out for the search"
        )
    order = np.random.default_rng([seed, len(data)]).permutation(len(data))
    return Part(data, np.sort(order[count:])), Part(data, np.sort(order[:count]))


@dataclass(frozen=True)
class Pictures:
    """Prepared pictures as bytes (N, H, W, 3), with labels (N,)."""

    settle: NDArray[np.uint8]
    settle_labels: NDArray[np.int64]
    held: NDArray[np.uint8]
    held_labels: NDArray[np.int64]

    @property
    def sha256(self) -> str:
        """Over all of it."""
        digest = hashlib.sha256()
        for name, values in vars(self).items():
            digest.update(f"{name}:{values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write them into a folder."""
        np.savez(folder / FILE, **vars(self))

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        """What `save` wrote. Raises SlimError for a damaged file."""
        try:
            with np.load(folder / FILE, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SlimError(
                f"{folder / FILE} is damaged; remove {folder} to begin it anew"
            ) from error


def read_pictures(train: Part, held: Part, pre: Preprocess, seed: int) -> Pictures:
    """Prepare what a search looks at: some of the training pictures, and all that are held out.

    Raises SlimError for labels that are no single classes.
    """
    count = min(SETTLE_MOST, len(train))
    order = np.random.default_rng([seed, len(train), 1]).permutation(len(train))[:count]
    settle = _prepared(Part(train.data, train.indices[order]), pre)
    return Pictures(*settle, *_prepared(held, pre))


def _prepared(part: Part, pre: Preprocess) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.empty((len(part), pre.height, pre.width, 3), np.uint8)
    labels = np.empty(len(part), np.int64)
    for index in range(len(part)):
        picture, label = part[index]
        shown = prepare(picture, pre.height, pre.width, pre.crop_pct, pre.interpolation)
        images[index] = np.rint(255 * shown)  # exactly: it was made of bytes
        if not isinstance(label, int | np.integer):
            raise SlimError("slimming needs one class as the label of every picture")
        labels[index] = label
    return images, labels


def batches(
    images: NDArray[np.uint8], labels: NDArray[np.int64], mean: list[float], std: list[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised pictures (B, 3, H, W), channels last in memory, and labels (B,)."""
    center = torch.tensor(mean).view(1, 3, 1, 1)
    spread = torch.tensor(std).view(1, 3, 1, 1)
    for start in range(0, len(images), BATCH):
        part = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
        x_BCHW = (part.float() / 255 - center) / spread
        yield x_BCHW, torch.from_numpy(labels[start : start + BATCH])

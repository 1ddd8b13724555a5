"""What a dataset is, and how one without splits of its own is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgevit.data.errors import DataError, did_you_mean

Picture = NDArray[np.uint8]
"""(H, W, 3), RGB."""

SPLITS = ("train", "test", "all")
TEST_FRACTION = 0.2


class Dataset(Protocol):
    """Labelled pictures. Can be pickled, so that worker processes can have it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class; a label is an index into it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Picture, int]:
        """Picture (H, W, 3), freshly allocated, and its label. Raises IndexError, DataError."""
        ...


@runtime_checkable
class AnySize(Protocol):
    """A dataset whose pictures can be had in any size."""

    def resized(self, size: int) -> Self:
        """The same pictures, size x size pixels. Raises DataError."""
        ...


def at_size(dataset: Dataset, height: int, width: int) -> Dataset:
    """The dataset as a model with inputs of (height, width) pixels wants it.

    Pictures that come in any size get the input's longer side; others keep their own. Training and
    evaluation both ask here, since the one must be tested on what the other held out. Raises
    DataError.
    """
    return dataset.resized(max(height, width)) if isinstance(dataset, AnySize) else dataset


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Pictures (N, H, W, 3) in memory, of which `indices` belong to this split."""

    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        at = self.indices[index]
        return self.images[at].copy(), int(self.labels[at])


def check_split(split: str) -> None:
    """Raise DataError where `split` is none of SPLITS."""
    if split not in SPLITS:
        raise DataError(
            f"unknown split '{split}', expected one of {', '.join(SPLITS)}."
            + did_you_mean(split, list(SPLITS))
        )


def check_seed(seed: int) -> None:
    """Raise DataError for a seed that numpy does not take."""
    if seed < 0:
        raise DataError(f"a seed is 0 or more, got {seed}")


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raise DataError where there is nothing to tell apart, or a name stands for two classes."""
    if len(classes) < 2:
        only = f", only '{classes[0]}'" if classes else ""
        raise DataError(f"{where}: expected at least 2 classes, got {len(classes)}{only}")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise DataError(f"{where}: the class name '{twice}' is there twice")


def split_indices(
    labels: NDArray[np.int64], classes: Sequence[str], split: str, seed: int, where: str
) -> NDArray[np.int64]:
    """Which items of labels (N,) belong to `split`, in their order.

    One in five of every class is for the test, at least one and never all, drawn by `seed` for each
    class apart. Raises DataError for a class that has too few pictures.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise DataError(f"{where}: class '{classes[int(counts.argmin())]}' has no pictures")
    if split == "all":
        return np.arange(len(labels))
    if counts.min() < 2:
        raise DataError(
            f"{where}: class '{classes[int(counts.argmin())]}' has 1 picture, and a split into "
            "train and test takes 2 of every class; add one, or take the split 'all'"
        )
    is_test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        for_test = min(max(round(TEST_FRACTION * int(count)), 1), int(count) - 1)
        is_test[np.random.default_rng([seed, label]).permutation(members)[:for_test]] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test)

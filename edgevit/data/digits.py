"""`digits`: 1797 handwritten numerals of 8 x 8 pixels, real ones, that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgevit.data.dataset import ArrayDataset, Picture, split_indices
from edgevit.data.errors import DataError, package_folder

SIDE = 8
LEVELS = 16  # a pixel is the count of set bits in a block of 4 x 4
DEFAULT_SIZE = 32
CLASSES = tuple("0123456789")


@dataclass(frozen=True, eq=False)
class DigitsDataset(ArrayDataset):
    """The digits of one split, enlarged to `size` pixels, 8 or more, when asked for."""

    size: int

    def __post_init__(self) -> None:
        if self.size < SIDE:
            raise DataError(
                f"digits are {SIDE} x {SIDE} pixels and are not shrunk, got size {self.size}"
            )

    def resized(self, size: int) -> Self:
        """The same digits, size x size pixels. Raises DataError."""
        return replace(self, size=size)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        from PIL import Image

        picture, label = super().__getitem__(index)
        enlarged = Image.fromarray(picture).resize((self.size,) * 2, Image.Resampling.BICUBIC)
        return np.array(enlarged), label


def open_digits(
    ref: str, splits: Sequence[str], size: int | None, seed: int
) -> list[DigitsDataset]:
    """The digits of each split as RGB, light on dark. size is the side in pixels, 8 or more.

    Raises DataError.
    """
    if ref != "digits":
        raise DataError(f"'digits' takes nothing behind its name, got '{ref}'")
    size = DEFAULT_SIZE if size is None else size
    images, labels = _read()
    return [
        DigitsDataset(
            CLASSES, images, labels, split_indices(labels, CLASSES, split, seed, ref), size
        )
        for split in splits
    ]


@cache
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (1797, 8, 8, 3) and labels, without the second that importing scikit-learn takes."""
    folder = package_folder("'digits'", "sklearn", "scikit-learn") / "datasets" / "data"
    try:
        table = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read scikit-learn's digits: {error}") from error
    grey = np.rint(table[:, :-1] * (255 / LEVELS)).astype(np.uint8).reshape(-1, SIDE, SIDE)
    return np.repeat(grey[..., None], 3, axis=-1), table[:, -1].astype(np.int64)

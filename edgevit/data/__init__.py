"""Labelled pictures: a folder, an .npz, `digits` or `glyphs`. Needs numpy and PIL only."""

from __future__ import annotations

from edgevit.data.dataset import SPLITS, Dataset, Picture, at_size
from edgevit.data.errors import DataError
from edgevit.data.opening import open_dataset, open_splits
from edgevit.data.picture_file import read_picture
from edgevit.data.prepare import prepare

__all__ = [
    "SPLITS",
    "DataError",
    "Dataset",
    "Picture",
    "at_size",
    "open_dataset",
    "open_splits",
    "prepare",
    "read_picture",
]

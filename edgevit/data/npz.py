"""Pictures in one .npz: `images` uint8 (N, H, W, 3), `labels` (N,), and `classes` (K,) if named."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.data.dataset import ArrayDataset, check_classes, split_indices
from edgevit.data.errors import DataError, did_you_mean

IMAGES, LABELS, CLASSES = "images", "labels", "classes"


def open_npz(path: Path, splits: Sequence[str], seed: int) -> list[ArrayDataset]:
    """Read the arrays, and keep the items of each split (80/20, drawn by the seed).

    Without `classes` the classes are named by their numbers. Raises DataError for arrays that are
    missing or of another type or shape, and for pickled objects, which are never loaded.
    """
    images, labels, names = _read(path)
    _check(path, images, labels)
    if names is None:
        classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    else:
        classes = _names(path, names)
    check_classes(classes, str(path))
    if labels.max() >= len(classes):
        raise DataError(
            f"{path}: label {int(labels.max())} is none of the {len(classes)} classes; "
            "labels count from 0"
        )
    numbers = labels.astype(np.int64)
    keep = [split_indices(numbers, classes, split, seed, str(path)) for split in splits]
    return [ArrayDataset(classes, images, numbers, indices) for indices in keep]


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    at = "the file"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one array without a name; save it with np.savez")
        with loaded as arrays:
            keys = arrays.files
            for key in (IMAGES, LABELS):
                if key not in keys:
                    near = did_you_mean(key, keys)
                    raise DataError(
                        f"{path} has no array '{key}', expected '{IMAGES}' (uint8, N x H x W x 3) "
                        f"and '{LABELS}' (N); it has: {', '.join(keys) or 'no named arrays'}.{near}"
                    )
            read = {}
            for key in (IMAGES, LABELS, CLASSES):
                at = f"'{key}'"
                read[key] = arrays[key] if key in keys else None
    except ValueError as error:  # numpy's refusal of pickles
        raise DataError(
            f"{path}: {at} is not plain numpy data ({error}). Pickled objects could run code and "
            "are not loaded; save numbers, and names as np.array(names, dtype=str)"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz: {error}") from error
    images, labels = read[IMAGES], read[LABELS]
    assert images is not None and labels is not None
    return images, labels, read[CLASSES]


def _check(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(
            f"{path}: '{IMAGES}': expected uint8 of shape (N, H, W, 3), RGB in 0..255, "
            f"got {images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: '{LABELS}': expected {len(images)} integers, one for each picture, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if not images.size:
        raise DataError(f"{path} has no pictures: '{IMAGES}' has shape {images.shape}")
    if labels.min() < 0:
        raise DataError(f"{path}: labels count from 0, got {int(labels.min())}")


def _names(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(
            f"{path}: '{CLASSES}': expected text of shape (K,), np.array(names, dtype=str), "
            f"got {names.dtype} of shape {names.shape}"
        )
    return tuple(str(name) for name in names)

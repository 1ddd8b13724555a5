"""Pictures in one folder for each class, as torchvision's and timm's ImageFolder have them.

FOLDER/cat/1.jpg  FOLDER/dog/any/depth/2.png            split here, 80/20
FOLDER/train/cat/1.jpg ...  FOLDER/val/cat/7.jpg ...    split by whoever made it (or test/)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.data.dataset import Picture, check_classes, split_indices
from edgevit.data.errors import DataError
from edgevit.data.picture_file import read_picture

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
TRAIN = "train"
# The first that is there. ImageNet has both, and its test/ has no class folders.
HELD_OUT = ("val", "test")
LAYOUT = "expected FOLDER/CLASS/PICTURE or FOLDER/train/CLASS/PICTURE and FOLDER/val/CLASS/PICTURE"


@dataclass(frozen=True)
class FolderDataset:
    """Picture files, read when asked for."""

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        return read_picture(self.files[index]), self.labels[index]


def open_folder(path: Path, splits: Sequence[str], seed: int) -> list[FolderDataset]:
    """Open each split of a folder. Classes are its folders' names in the order of their characters.

    Raises DataError for a layout that is none of the two, one class only, or a class without
    pictures; a picture that cannot be read is found when it is asked for.
    """
    held_out = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    if held_out is not None and (path / TRAIN).is_dir():
        return _split_already(path / TRAIN, held_out, splits)
    names = _class_folders(path)
    if set(names) <= {TRAIN, *HELD_OUT}:
        raise DataError(
            f"{path} has {' and '.join(f'{name}/' for name in names)}, and a split takes "
            f"{TRAIN}/ and {HELD_OUT[0]}/. Give {path / names[0]} to use it alone"
        )
    check_classes(names, str(path))
    files, labels = _pictures(path, names)
    numbers = np.array(labels, dtype=np.int64)
    keeps = [split_indices(numbers, names, split, seed, str(path)) for split in splits]
    return [
        FolderDataset(names, tuple(files[i] for i in keep), tuple(labels[i] for i in keep))
        for keep in keeps
    ]


def _split_already(train: Path, held_out: Path, splits: Sequence[str]) -> list[FolderDataset]:
    names, others = _class_folders(train), _class_folders(held_out)
    if names != others:
        apart = sorted(set(names) ^ set(others))
        has = train if apart[0] in names else held_out
        more = f" (and {len(apart) - 1} more)" if len(apart) > 1 else ""
        raise DataError(
            f"{train} and {held_out} must have the same class folders, only {has} has "
            f"'{apart[0]}'{more}"
        )
    check_classes(names, str(train))
    opened = []
    for split in splits:
        files: list[Path] = []
        labels: list[int] = []
        for part, wanted in ((train, "train"), (held_out, "test")):
            if split in (wanted, "all"):
                more_files, more_labels = _pictures(part, names)
                files += more_files
                labels += more_labels
        opened.append(FolderDataset(names, tuple(files), tuple(labels)))
    return opened


def _class_folders(path: Path) -> tuple[str, ...]:
    entries = [entry for entry in _entries(path) if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        loose = sum(entry.suffix.lower() in SUFFIXES for entry in entries)
        what = f"{loose} pictures and no class folders" if loose else "no class folders"
        raise DataError(f"{path} has {what}; {LAYOUT}")
    return tuple(names)


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from error


def _pictures(path: Path, names: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """The picture files of each class, in the order of their paths, and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(
            Path(folder) / file
            for folder, _, inside in os.walk(path / name)
            for file in inside
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
        )
        if not found:
            raise DataError(
                f"class '{name}' has no pictures: {path / name} holds none of "
                f"{' '.join(sorted(SUFFIXES))}; add some or take the folder away"
            )
        files += found
        labels += [label] * len(found)
    return files, labels

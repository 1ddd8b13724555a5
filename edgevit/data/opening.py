"""From a data reference to a dataset.

The grammar: a folder of class folders, a file `NAME.npz`, `digits`, or `glyphs[:CLASSES[:COUNT]]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgevit.data.dataset import Dataset, check_seed, check_split
from edgevit.data.digits import open_digits
from edgevit.data.errors import DataError, did_you_mean
from edgevit.data.folder import open_folder
from edgevit.data.glyphs import open_glyphs
from edgevit.data.npz import open_npz

# Named datasets, whose pictures have any size asked for: (ref, splits, size, seed) -> one each.
NAMED: dict[str, Callable[[str, Sequence[str], int | None, int], Sequence[Dataset]]] = {
    "digits": open_digits,
    "glyphs": open_glyphs,
}


def open_dataset(
    ref: str, split: str = "train", *, size: int | None = None, seed: int = 0
) -> Dataset:
    """Open the split "train", "test" or "all" of a dataset.

    size is the side in pixels of the pictures of `digits` (default 32) and `glyphs` (default 64);
    those of a folder or an .npz keep their own size. seed chooses the split of data that bring
    none, and what `glyphs` draws: whoever tests must give the seed that was trained with. Raises
    DataError.
    """
    (dataset,) = _open(ref, (split,), size, seed)
    return dataset


def open_splits(ref: str, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Open "train" and "test" of a dataset, its files read or listed once. Raises DataError."""
    train, test = _open(ref, ("train", "test"), None, seed)
    return train, test


def _open(ref: str, splits: Sequence[str], size: int | None, seed: int) -> Sequence[Dataset]:
    for split in splits:
        check_split(split)
    check_seed(seed)
    if size is not None and size < 1:
        raise DataError(f"the size of pictures is a positive number of pixels, got {size}")
    name = ref.split(":", maxsplit=1)[0]  # 'glyphs' of 'glyphs:36'; a path is itself
    if (opener := NAMED.get(name)) is not None:
        return opener(ref, splits, size, seed)
    path = Path(ref)
    if path.is_dir():
        return open_folder(path, splits, seed)
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path, splits, seed)
    raise DataError(_unknown(ref, path))


def _unknown(ref: str, path: Path) -> str:
    expected = (
        "expected a folder with one folder of pictures for each class, an .npz (images, labels), "
        f"{' or '.join(NAMED)}"
    )
    if path.exists():
        return f"cannot take data from the file {ref}: {expected}"
    known = list(NAMED)
    if path.parent.is_dir():
        known += [str(path.parent / other.name) for other in path.parent.iterdir()]
    return f"no such data: '{ref}'; {expected}." + did_you_mean(ref, known)

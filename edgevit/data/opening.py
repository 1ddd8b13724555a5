"""From a data reference to a dataset.

The grammar: a folder of class folders, a file `NAME.npz`, `digits`, or `glyphs[:CLASSES[:COUNT]]`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgevit.data.dataset import Dataset, check_seed, check_split
from edgevit.data.digits import open_digits
from edgevit.data.errors import DataError, did_you_mean
from edgevit.data.folder import open_folder
from edgevit.data.glyphs import open_glyphs
from edgevit.data.npz import open_npz

# Named datasets, whose pictures have any size asked for: (ref, split, size, seed) -> Dataset.
NAMED: dict[str, Callable[[str, str, int | None, int], Dataset]] = {
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
    check_split(split)
    check_seed(seed)
    if size is not None and size < 1:
        raise DataError(f"the size of pictures is a positive number of pixels, got {size}")
    if (opener := NAMED.get(_name(ref))) is not None:
        return opener(ref, split, size, seed)
    path = Path(ref)
    if path.is_dir():
        return open_folder(path, split, seed)
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path, split, seed)
    raise DataError(_unknown(ref, path))


def takes_size(ref: str) -> bool:
    """Whether the pictures of this reference can be had in any size."""
    return _name(ref) in NAMED


def _name(ref: str) -> str:
    """'glyphs' of 'glyphs:36'; a path is itself."""
    return ref.split(":", maxsplit=1)[0]


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

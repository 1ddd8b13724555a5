"""A picture file as RGB, 8 bits a channel."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevit.data.dataset import Picture
from edgevit.data.errors import DataError

# PIL's modes of more than 8 bits a channel: a plain convert("RGB") would cut them off at white.
DEEP = ("I", "F")


def read_picture(path: Path, *, upright: bool = False) -> Picture:
    """Any picture that PIL reads, (H, W, 3).

    `upright` turns it as its EXIF orientation says, as a camera's owner sees it. Without, as in
    timm's evaluation, that is left alone: published accuracies are of pictures read so.
    Transparency is dropped; 16-bit greys are scaled to 8 bits. Raises DataError naming the file.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            "Reading pictures needs the package 'pillow', which is not installed. "
            "Install it with: pip install pillow"
        ) from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"expected a picture: {path} {what}")
    try:
        with Image.open(path) as opened:
            picture: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
            if picture.mode.startswith(DEEP):
                return _from_deep(np.asarray(picture))
            return np.array(picture.convert("RGB"))
    except (
        OSError,  # not a picture, or cut short
        EOFError,
        SyntaxError,  # PIL's word for a broken PNG
        ValueError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"cannot read the picture {path}: {error}. Expected a JPEG, PNG, WebP or another kind "
            "that PIL reads; mend it, or take it out"
        ) from error


def _from_deep(grey_HW: NDArray[np.generic]) -> Picture:
    """16-bit counts, or floats in [0, 1], as (H, W, 3) uint8."""
    value = grey_HW.astype(np.float64)
    top = 1.0 if grey_HW.dtype.kind == "f" and value.max(initial=0) <= 1 else 65535.0
    grey = np.rint(np.clip(value / top, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)

"""A picture file as a person sees it: upright, in RGB, 8 bits a channel."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MissingExtra, RuntimeFault

# PIL's modes of more than 8 bits a channel: a plain convert("RGB") would cut them off at white.
DEEP = ("I", "F")


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Any picture that PIL reads, (H, W, 3) uint8.

    Turned as its EXIF orientation says, as a camera's owner sees it. Transparency is dropped, as
    torchvision's and timm's loaders drop it; 16-bit greys are scaled to 8 bits. Raises RuntimeFault
    naming the file, MissingExtra without PIL.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtra(
            "Reading pictures needs the package 'pillow', which is not installed. "
            "Install it with: pip install pillow"
        ) from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise RuntimeFault(f"expected a picture: {path} {what}")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
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
        raise RuntimeFault(
            f"cannot read the picture {path}: {error}. Expected a JPEG, PNG, WebP or another kind "
            "that PIL reads; fetch or save it again"
        ) from error


def _from_deep(grey_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit counts, or floats in [0, 1], as (H, W, 3) uint8."""
    value = grey_HW.astype(np.float64)
    top = 1.0 if grey_HW.dtype.kind == "f" and value.max(initial=0) <= 1 else 65535.0
    grey = np.rint(np.clip(value / top, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)

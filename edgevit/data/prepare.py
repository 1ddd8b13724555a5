"""The evaluation transform: a picture of any size to what a model sees, as timm does it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgevit.data.dataset import Picture
from edgevit.data.errors import DataError, did_you_mean

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def prepare(
    image_HWC: Picture,
    height: int,
    width: int,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
) -> NDArray[np.float32]:
    """Resize and crop the centre: uint8 (H, W, 3) to float32 (height, width, 3) in [0, 1].

    The picture is scaled until it just covers (height, width) / crop_pct, its aspect kept, and the
    middle is cut out. The same numbers as timm's evaluation transform (crop mode "center") before
    the mean and the standard deviation. Raises DataError.
    """
    from PIL import Image

    _check(image_HWC, height, width, crop_pct, interpolation)
    full_h, full_w = image_HWC.shape[:2]
    goal_h, goal_w = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if goal_h == goal_w:  # torchvision's Resize: the long side rounds down
        short = min(full_h, full_w)
        new_h, new_w = (
            goal_h if full == short else int(goal_h * full / short) for full in (full_h, full_w)
        )
    else:  # timm's ResizeKeepRatio: both round
        ratio = min(full_h / goal_h, full_w / goal_w)
        new_h, new_w = round(full_h / ratio), round(full_w / ratio)
    picture = Image.fromarray(image_HWC)
    if (new_h, new_w) != (full_h, full_w):
        picture = picture.resize((new_w, new_h), getattr(Image.Resampling, interpolation.upper()))
    top, left = round((new_h - height) / 2), round((new_w - width) / 2)
    crop = picture.crop((left, top, left + width, top + height))
    return np.asarray(crop, dtype=np.float32) / np.float32(255)


def _check(image_HWC: Picture, height: int, width: int, crop_pct: float, interpol: str) -> None:
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise DataError(
            f"a picture is uint8 of shape (H, W, 3), got {image_HWC.dtype} of {image_HWC.shape}"
        )
    if not image_HWC.size:
        raise DataError(f"the picture is empty, its shape is {image_HWC.shape}")
    if height < 1 or width < 1:
        raise DataError(f"pictures have at least 1 x 1 pixels, asked for {height} x {width}")
    if not 0 < crop_pct <= 1:
        raise DataError(f"crop_pct is a share above 0 and up to 1, got {crop_pct}")
    if interpol not in INTERPOLATIONS:
        raise DataError(
            f"unknown interpolation '{interpol}', expected one of {', '.join(INTERPOLATIONS)}."
            + did_you_mean(interpol, list(INTERPOLATIONS))
        )

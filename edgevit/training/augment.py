"""Light augmentation of training pictures: a random crop, a small shift, a mirror where asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevit.training.options import Preprocess, TrainOptions


def augmented(
    picture: NDArray[np.uint8], pre: Preprocess, options: TrainOptions, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A random view of a picture (H, W, 3) of bytes: (height, width, 3), float32 in [0, 1]."""
    from PIL import Image

    height, width = picture.shape[:2]
    box = random_box(height, width, pre.width / pre.height, options, rng)
    image = Image.fromarray(picture)
    resample = getattr(Image.Resampling, pre.interpolation.upper())
    view = np.asarray(image.resize((pre.width, pre.height), resample, box=box), dtype=np.float32)
    most = np.array([options.shift * pre.height, options.shift * pre.width])
    down, right = np.rint(rng.uniform(-most, most)).astype(int)
    view = moved(view, int(down), int(right))
    if options.flip and rng.random() < 0.5:
        view = view[:, ::-1]
    return view / np.float32(255)


def random_box(
    height: int, width: int, aspect: float, options: TrainOptions, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A part of a picture of height x width pixels: left, top, right, bottom.

    Its area is a random share of the largest part with this aspect (width over height); the aspect
    itself is stretched a little.
    """
    full = min(width, height * aspect)  # the width of that largest part
    share = rng.uniform(options.crop_area, 1.0)
    stretch = options.crop_stretch ** rng.uniform(-1.0, 1.0)
    box_w = min(full * np.sqrt(share * stretch), width)
    box_h = min(full / aspect * np.sqrt(share / stretch), height)
    left = rng.uniform(0.0, width - box_w) if box_w < width else 0.0
    top = rng.uniform(0.0, height - box_h) if box_h < height else 0.0
    return float(left), float(top), float(left + box_w), float(top + box_h)


def moved(view: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    """A picture (H, W, 3) moved by whole pixels; what comes in continues its edge."""
    height, width = view.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return view[rows][:, columns]

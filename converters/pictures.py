"""The pictures that artefacts are proven on: real photos and generated ones, RGB in [0, 1].

The photos are the two that scikit-learn ships (china.jpg, flower.jpg; CC-BY), cut at several places
and scales, so that the inputs differ the way a camera's do.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float32]

# (photo, centre y, centre x, side), as fractions of the photo's shorter side.
_CROPS = (
    (0, 0.50, 0.50, 1.00),
    (1, 0.50, 0.50, 1.00),
    (0, 0.35, 0.30, 0.55),
    (1, 0.45, 0.60, 0.60),
    (0, 0.70, 0.75, 0.40),
    (1, 0.30, 0.25, 0.45),
)


def photos(height: int, width: int) -> Pictures:
    """Six crops of the two sample photos, (6, height, width, 3), float32 in [0, 1]."""
    from PIL import Image

    crops = []
    for index, centre_y, centre_x, side in _CROPS:
        photo = _sample(("china.jpg", "flower.jpg")[index])
        full_h, full_w = photo.shape[:2]
        edge = int(min(full_h, full_w) * side)
        top = int(np.clip(centre_y * full_h - edge / 2, 0, full_h - edge))
        left = int(np.clip(centre_x * full_w - edge / 2, 0, full_w - edge))
        crop = Image.fromarray(photo[top : top + edge, left : left + edge])
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(crops).astype(np.float32) / np.float32(255)


@cache
def _sample(name: str) -> NDArray[np.uint8]:
    """One of scikit-learn's photos, (H, W, 3), without the second that importing it takes."""
    from PIL import Image

    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / name) as photo:
        return np.asarray(photo.convert("RGB"))


def generated(count: int, height: int, width: int, seed: int = 0) -> Pictures:
    """`count` seeded pictures, (count, height, width, 3): gratings, blobs and noise by turns."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    made = []
    for index in range(count):
        phase, tint = rng.uniform(0, 6.28), rng.uniform(0.2, 1.0, 3)
        if index % 3 == 0:
            angle, freq = rng.uniform(0, 3.14), rng.uniform(3, 30)
            wave = np.sin(freq * 6.28 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            plane = 0.5 + 0.5 * wave
        elif index % 3 == 1:
            plane = np.zeros_like(x)
            for _ in range(12):
                cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.02, 0.25)
                plane += rng.uniform(0.2, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius**2)
            plane = plane / plane.max()
        else:
            plane = rng.uniform(0, 1, (height, width))
        picture = plane[..., None] * tint + rng.uniform(0, 0.1, (height, width, 3))
        made.append(np.clip(picture, 0, 1))
    return np.stack(made).astype(np.float32)


def proof_pictures(height: int, width: int) -> Pictures:
    """The nine inputs of every verification: photos and generated ones by turns, (9, H, W, 3)."""
    real, drawn = photos(height, width), generated(3, height, width, seed=7)
    order = [real[0], real[1], drawn[0], drawn[2], real[2], real[3], drawn[1], real[4], real[5]]
    return np.stack(order)


def as_uint8(pictures: Pictures) -> NDArray[np.uint8]:
    """The same pictures in 0..255."""
    return np.rint(pictures * 255).astype(np.uint8)

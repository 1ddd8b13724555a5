"""The letters of `glyphs` without colour, clutter and noise: what a ViT learns to read on first.

A ViT of this size makes nothing of `glyphs:62` for some thousand steps. After plain letters it does
at once.
"""

from __future__ import annotations

import numpy as np

from edgevit.data import Dataset
from edgevit.data.dataset import ArrayDataset
from edgevit.data.errors import package_folder
from edgevit.data.glyph_drawing import letter_mask
from edgevit.data.glyphs import FONTS


def plain_letters(like: Dataset, side: int, seed: int) -> ArrayDataset:
    """As many pictures as `like` has, of its classes by turns: dark on light, a third inverted."""
    folder = package_folder("'glyphs'", "matplotlib", "matplotlib") / "mpl-data" / "fonts" / "ttf"
    fonts = [folder / name for name in FONTS]
    rng = np.random.default_rng(seed)
    count, classes = len(like), like.classes
    images = np.empty((count, side, side, 3), np.uint8)
    labels = np.arange(count) % len(classes)
    for image, label in zip(images, labels, strict=True):
        font = fonts[rng.integers(len(fonts))]
        mask = np.asarray(letter_mask(classes[label], font, side, rng))
        image[:] = (mask if rng.random() < 1 / 3 else 255 - mask)[:, :, None]
    return ArrayDataset(tuple(classes), images, labels, np.arange(count))

"""`glyphs[:CLASSES[:COUNT]]`: numerals and letters in many fonts, drawn when asked for.

Nothing is stored and nothing is downloaded: picture i of a split is a function of the seed, the
split, i, the number of classes and the size. The first 10 classes are the numerals, 36 adds the
capitals and 62 the small letters. With 62 some pictures have no right answer (o O 0, l I), and the
small letters that are shrunk capitals (c s v w x z) can only be told by their size, so that
nothing reaches 100 percent.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from edgevit.data.dataset import Picture
from edgevit.data.errors import DataError, package_folder
from edgevit.data.glyph_drawing import draw

LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
CLASS_COUNTS = (10, len(LETTERS))
DEFAULT_CLASSES = 36
DEFAULT_COUNT = 500
TRAIN_FOR_ONE_TEST = 5
DEFAULT_SIZE = 64
SMALLEST = 16

# The fonts of matplotlib that have every letter and numeral; its others are symbols, or show every
# letter as the same box (tests/data/test_glyph_fonts.py looks at each).
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
    "STIXGeneralItalic.ttf",
    "cmb10.ttf",
    "cmmi10.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
)

# A number for each split in the seed of its pictures: no picture can be in both.
TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class GlyphsDataset:
    """Pictures (size, size, 3) of the classes by turns: item i shows class i modulo their number.

    parts are (number of the split, how many pictures of it), one behind the other.
    """

    classes: tuple[str, ...]
    parts: tuple[tuple[int, int], ...]
    size: int
    seed: int
    fonts: tuple[Path, ...]

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise DataError(
                f"glyphs cannot be read below {SMALLEST} x {SMALLEST} pixels, got {self.size}"
            )

    def resized(self, size: int) -> Self:
        """The same scenes, size x size pixels. Raises DataError."""
        return replace(self, size=size)

    def __len__(self) -> int:
        return sum(count for _, count in self.parts)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        at = index + len(self) if index < 0 else index
        for part, count in self.parts:
            if 0 <= at < count:
                label = at % len(self.classes)
                rng = np.random.default_rng([self.seed, part, at])
                font = self.fonts[rng.integers(len(self.fonts))]
                return draw(self.classes[label], font, self.size, rng), label
            at -= count
        raise IndexError(f"item {index} of {len(self)}")


def open_glyphs(
    ref: str, splits: Sequence[str], size: int | None, seed: int
) -> list[GlyphsDataset]:
    """The glyphs of each split: COUNT pictures a class for training, a fifth of it for the test.

    size is the side in pixels. Raises DataError for a reference or a size that cannot be drawn, or
    where matplotlib, whose fonts these are, is not installed.
    """
    classes, count = _counts(ref)
    size = DEFAULT_SIZE if size is None else size
    parts = {
        "train": (TRAIN, classes * count),
        "test": (TEST, classes * max(1, count // TRAIN_FOR_ONE_TEST)),
    }
    letters, fonts = tuple(LETTERS[:classes]), _fonts()
    return [
        GlyphsDataset(
            letters, tuple(parts.values()) if split == "all" else (parts[split],), size, seed, fonts
        )
        for split in splits
    ]


def _counts(ref: str) -> tuple[int, int]:
    """Classes, and pictures a class for training."""
    words = ref.split(":")[1:]
    fewest, most = CLASS_COUNTS
    if len(words) > 2 or not all(word.isdecimal() for word in words):
        raise DataError(f"expected glyphs, glyphs:CLASSES or glyphs:CLASSES:COUNT, got '{ref}'")
    classes, count = (*map(int, words), *(DEFAULT_CLASSES, DEFAULT_COUNT)[len(words) :])
    if not fewest <= classes <= most:
        raise DataError(f"glyphs have {fewest} to {most} classes, got {classes} in '{ref}'")
    if count < 1:
        raise DataError(f"expected at least 1 picture a class, got {count} in '{ref}'")
    return classes, count


def _fonts() -> tuple[Path, ...]:
    folder = package_folder("'glyphs'", "matplotlib", "matplotlib") / "mpl-data" / "fonts" / "ttf"
    fonts = tuple(folder / name for name in FONTS)
    if missing := [font.name for font in fonts if not font.is_file()]:
        raise DataError(
            f"this matplotlib does not ship {', '.join(missing)} in {folder}: install 3.8 or newer"
        )
    return fonts

"""Which of matplotlib's fonts have letters: each is drawn and read, not believed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgevit.data.glyphs import FONTS, LETTERS, _fonts

FOLDER = _fonts()[0].parent
CELLS = 24


def drawn(font, letter):
    """The letter filling a square, blurred, as a unit vector without mean; None for nothing."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(letter))
    if right <= left or bottom <= top:
        return None
    layer = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(layer).text((-left, -top), letter, fill=255, font=font)
    side = max(layer.size)
    square = Image.new("L", (side + side // 4,) * 2)
    at = ((square.width - layer.width) // 2, (square.height - layer.height) // 2)
    square.paste(layer, at)
    blurred = square.filter(ImageFilter.GaussianBlur(side / 16))
    small = np.asarray(blurred.resize((CELLS, CELLS), Image.Resampling.BOX), float).ravel()
    small -= small.mean()
    return small / np.linalg.norm(small) if small.any() else None


@pytest.fixture(scope="module")
def sheets():
    """The 62 letters of every font file that draws all of them, (62, CELLS^2)."""
    found = {}
    for path in sorted(FOLDER.glob("*.ttf")):
        font = ImageFont.truetype(str(path), 48, layout_engine=ImageFont.Layout.BASIC)
        letters = [drawn(font, letter) for letter in LETTERS]
        if all(letter is not None for letter in letters):
            found[path.name] = np.stack(letters)
    return found


def test_the_fonts_are_those_that_draw_every_letter_as_one_reads_it(sheets):
    """The most similar letter of the other fonts is the same one, for half of the letters or more.

    Symbol fonts fail that or draw nothing; so do fonts that show one box for all. Capitals that
    only differ from small letters by their size count as misread, hence not all of them.
    """
    read = {}
    for name, own in sheets.items():
        others = np.stack([sheets[other] for other in FONTS if other != name])
        likest = np.einsum("lp,fmp->flm", own, others).max(axis=0).argmax(axis=1)
        read[name] = (likest == np.arange(len(LETTERS))).mean()
    assert {name for name, share in read.items() if share >= 0.5} == set(FONTS)
    assert sorted(read.values())[len(read) - len(FONTS) - 1] < 0.4, "a clear gap"


def test_every_letter_is_drawn_as_itself():
    """No two alike, and none like the box that stands for a character which the font lacks."""
    for path in _fonts():
        font = ImageFont.truetype(str(path), 48, layout_engine=ImageFont.Layout.BASIC)
        masks = [font.getmask(letter) for letter in [*LETTERS, "\U0010ffff"]]
        assert all(mask.getbbox() for mask in masks[:-1]), path.name
        assert len({(mask.size, bytes(mask)) for mask in masks}) == len(LETTERS) + 1, path.name


def test_no_font_is_named_twice_and_all_are_there():
    assert len(set(FONTS)) == len(FONTS) == len(_fonts())

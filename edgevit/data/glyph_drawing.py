"""Draw one letter the way a camera might meet it: posed, coloured, amid clutter and noise.

All lengths are shares of the picture's side, and the noise is drawn last, so that one random
generator gives the same scene at every size. The letter stays inside the middle 86 percent, which a
centre crop leaves whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevit.data.dataset import Picture

if TYPE_CHECKING:
    from PIL import Image

ROOM = 0.43  # the letter's furthest point from the centre, along x or y
EM = (0.62, 1.0)  # the font's size; capitals are about 0.7 of it
ROTATION = np.deg2rad(20.0)  # less than would make a 6 of a 9, an N of a Z or a W of an M
SHEAR = 0.3
LOG_ASPECT = 0.2
LEAST_CONTRAST = 70.0  # of the letter's luma (0..255) against everything behind it
CANDIDATES = 32
SHAPES = 7
SCRATCHES = 2
NOISE = (1.0, 16.0)  # standard deviation, of 255
BLURRED = 0.3  # share of the pictures
LUMA = np.array([0.299, 0.587, 0.114])
OVERSAMPLED = 2  # PIL draws shapes without smooth edges


def draw(letter: str, font: Path, size: int, rng: np.random.Generator) -> Picture:
    """A picture (size, size, 3) of one letter, all else drawn by the generator."""
    from PIL import Image, ImageFilter

    palette = _palette(rng)
    canvas = _ground(palette, size, rng)
    ink = Image.new("RGB", (size, size), _rgb(palette.ink))
    canvas.paste(ink, mask=letter_mask(letter, font, size, rng))
    _scratch(canvas, palette, rng)
    blurred, radius = rng.random() < BLURRED, rng.uniform(0.0, 0.015) * size
    if blurred:
        canvas = canvas.filter(ImageFilter.GaussianBlur(radius))
    sigma = rng.uniform(*NOISE)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(sigma)
    noisy = np.asarray(canvas, dtype=np.float32) + noise
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Palette:
    """Colours in 0..255: of the four corners (4, 3), the letter (3,) and shapes (SHAPES, 3)."""

    corners: NDArray[np.float64]
    ink: NDArray[np.float64]
    shapes: NDArray[np.float64]


def _palette(rng: np.random.Generator) -> _Palette:
    ground = rng.uniform(0, 255, 3)
    corners = np.clip(ground + rng.uniform(-30, 30, (4, 3)), 0, 255)
    far = ground @ LUMA < 127.5  # white where the ground is dark
    inks = np.vstack([rng.uniform(0, 255, (CANDIDATES, 3)), np.full((1, 3), 255.0 * far)])
    apart = np.abs(inks @ LUMA - (corners @ LUMA)[:, None]).min(axis=0)
    apart[-1] = np.inf
    ink = inks[int(np.argmax(apart >= LEAST_CONTRAST))]
    shapes = rng.uniform(0, 255, (SHAPES, 3))
    too_near = np.abs(shapes @ LUMA - ink @ LUMA) < LEAST_CONTRAST
    faint = (shapes - (shapes @ LUMA)[:, None]) * 0.3 + corners.mean(axis=0)  # of the ground's luma
    shapes[too_near] = faint[too_near]
    return _Palette(corners, ink, np.clip(shapes, 0, 255))


def _ground(palette: _Palette, size: int, rng: np.random.Generator) -> Image.Image:
    """A gradient between the corners, with shapes on it."""
    from PIL import Image, ImageDraw

    side = size * OVERSAMPLED
    corners = Image.fromarray(np.rint(palette.corners).astype(np.uint8).reshape(2, 2, 3))
    canvas = corners.resize((side, side), Image.Resampling.BILINEAR)
    brush = ImageDraw.Draw(canvas)
    count = rng.integers(2, SHAPES + 1)
    for index in range(SHAPES):  # as many draws for every picture
        kind = int(rng.integers(4))
        x0, y0, x1, y1 = (rng.uniform(-0.1, 1.1, 4) * side).tolist()
        width = max(1, round(float(rng.uniform(0.01, 0.05)) * side))
        start, span = rng.uniform(0, 360), rng.uniform(40, 320)
        if index >= count:
            continue
        colour = _rgb(palette.shapes[index])
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if kind == 0:
            brush.line((x0, y0, x1, y1), fill=colour, width=width)
        elif kind == 1:
            brush.arc(box, start, start + span, fill=colour, width=width)
        elif kind == 2:
            brush.ellipse(box, outline=colour, width=width)
        else:
            brush.rectangle(box, outline=colour, width=width)
    return canvas.reduce(OVERSAMPLED)


def _scratch(canvas: Image.Image, palette: _Palette, rng: np.random.Generator) -> None:
    """Up to two thin lines over everything, in a colour of the ground."""
    from PIL import Image, ImageDraw

    side = canvas.width * OVERSAMPLED
    mask = Image.new("L", (side, side))
    brush = ImageDraw.Draw(mask)
    count = rng.integers(SCRATCHES + 1)
    for index in range(SCRATCHES):
        ends = tuple((rng.uniform(0, 1, 4) * side).tolist())
        width = max(1, round(float(rng.uniform(0.005, 0.02)) * side))
        if index < count:
            brush.line(ends, fill=255, width=width)
    colour = Image.new("RGB", canvas.size, _rgb(palette.corners.mean(axis=0)))
    canvas.paste(colour, mask=mask.reduce(OVERSAMPLED))


def letter_mask(letter: str, font: Path, size: int, rng: np.random.Generator) -> Image.Image:
    """How much of each pixel the posed letter covers, 0..255, (size, size)."""
    from PIL import Image, ImageDraw

    em = rng.uniform(*EM) * size
    angle, shear = rng.uniform(-ROTATION, ROTATION), rng.uniform(-SHEAR, SHEAR)
    aspect = np.exp(rng.uniform(-LOG_ASPECT, LOG_ASPECT) / 2)
    place = rng.uniform(-1, 1, 2)

    step = max(2, size // 16)  # few sizes, so that opened fonts can be kept
    pixels = step * max(round(em / step), 1)
    opened = _font(font, pixels)
    left, top, right, bottom = map(int, opened.getbbox(letter))
    half = np.array([right - left, bottom - top]) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([aspect, 1 / aspect])
    pose = pose * (em / pixels)
    reach = np.abs(pose) @ half  # the posed box's furthest corner along x and y
    fit = min(1.0, *(ROOM * size / reach))
    pose, reach = pose * fit, reach * fit
    centre = size / 2 + place * (ROOM * size - reach)

    layer = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(layer).text((2 - left, 2 - top), letter, fill=255, font=opened)
    # PIL asks, for each pixel of the result, where in the layer it comes from.
    back = np.linalg.inv(pose)
    shift = half + 2 - back @ centre
    rows = (*back[0], shift[0], *back[1], shift[1])
    return layer.transform(
        (size, size), Image.Transform.AFFINE, rows, resample=Image.Resampling.BICUBIC
    )


@lru_cache(maxsize=128)
def _font(path: Path, pixels: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.rint(colour).astype(int).tolist()
    return red, green, blue

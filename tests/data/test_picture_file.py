"""Reading picture files: every kind PIL reads, upright where asked, and clear errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import DataError, read_picture


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(rgb, tmp_path, orientation):
    """The eight orientations of EXIF 2.3: what the stored rows and columns show."""
    stored = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored))
    picture.save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png", upright=True), rgb)


def test_other_kinds_of_pictures(rgb, tmp_path):
    picture, file = Image.fromarray(rgb), tmp_path / "p.png"
    grey = np.asarray(picture.convert("L"))
    picture.convert("L").save(file)
    np.testing.assert_array_equal(read_picture(file), np.repeat(grey[..., None], 3, 2))
    glass = np.concatenate([rgb, np.full((24, 40, 1), 7, np.uint8)], axis=2)
    Image.fromarray(glass).save(file)
    np.testing.assert_array_equal(read_picture(file), rgb)
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    np.testing.assert_array_equal(read_picture(file), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey > 127).save(file)
    np.testing.assert_array_equal(read_picture(file)[..., 0], (grey > 127) * np.uint8(255))
    few = picture.quantize(16)
    few.save(file)
    np.testing.assert_array_equal(read_picture(file), np.asarray(few.convert("RGB")))
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    ink.save(tmp_path / "p.jpg")
    red = read_picture(tmp_path / "p.jpg")[4, 4].astype(int)
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "p.tiff")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tiff")[..., 0], grey)


def test_pictures_that_are_none(rgb, tmp_path):
    file = tmp_path / "p.png"
    with pytest.raises(DataError, match=r"p\.png does not exist"):
        read_picture(file)
    with pytest.raises(DataError, match="is a folder"):
        read_picture(tmp_path)
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        whole = tmp_path / f"w.{suffix}"
        Image.fromarray(rgb).save(whole)
        data = whole.read_bytes()
        for broken in (b"", b"text", data[:30], data[: len(data) // 2]):
            file = Path(tmp_path / f"b.{suffix}")
            file.write_bytes(broken)
            with pytest.raises(DataError, match=re.escape(f"cannot read the picture {file}")):
                read_picture(file)

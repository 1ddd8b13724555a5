"""The evaluation transform, against timm's own on real photos."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import DataError, prepare, read_picture

SAMPLES = Path(find_spec("sklearn").origin).parent / "datasets" / "images"

CASES = [
    # height, width, crop_pct, interpolation
    (224, 224, 0.9, "bicubic"),
    (256, 256, 0.875, "bicubic"),
    (224, 224, 0.95, "bilinear"),
    (192, 192, 1.0, "bicubic"),
    (97, 97, 0.9, "nearest"),
    (160, 256, 0.9, "bicubic"),
    (256, 160, 0.875, "bilinear"),
    (31, 64, 1.0, "bicubic"),
    (640, 640, 0.95, "bicubic"),  # larger than the photo's short side
    (448, 700, 0.9, "lanczos"),
]


def photos():
    """Lying, standing, square, nearly square, tiny, and one pixel high."""
    china = np.array(Image.open(SAMPLES / "china.jpg").convert("RGB"))
    flower = np.array(Image.open(SAMPLES / "flower.jpg").convert("RGB"))
    return [
        china,
        np.ascontiguousarray(flower.transpose(1, 0, 2)),
        china[:400, 50:450].copy(),
        flower[:301, :300].copy(),
        china[100:113, 200:209].copy(),
        china[100:101, 200:260].copy(),
    ]


@pytest.mark.parametrize(("height", "width", "crop_pct", "interpolation"), CASES)
def test_equal_to_timm(timm, height, width, crop_pct, interpolation):
    from timm.data import create_transform

    transform = create_transform(
        (3, height, width), is_training=False, crop_pct=crop_pct, interpolation=interpolation,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    for photo in photos():
        if len(photo) == 1 and max(height, width) > 256:
            continue  # 60 times as long as it is high: enlarged it would not fit into memory
        want = transform(Image.fromarray(photo)).permute(1, 2, 0).numpy()
        got = prepare(photo, height, width, crop_pct, interpolation)
        assert got.dtype == np.float32 and got.shape == (height, width, 3)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


def test_models_of_timm_with_their_own_settings(timm):
    from timm.data import create_transform, resolve_data_config

    for name in ("shvit_s4.in1k", "efficientformerv2_s0.snap_dist_in1k", "deit_tiny_patch16_224"):
        cfg = resolve_data_config({}, model=timm.create_model(name, pretrained=False))
        transform = create_transform(**{**cfg, "mean": (0, 0, 0), "std": (1, 1, 1)})
        for photo in photos()[:2]:
            want = transform(Image.fromarray(photo)).permute(1, 2, 0).numpy()
            got = prepare(photo, *cfg["input_size"][1:], cfg["crop_pct"], cfg["interpolation"])
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


def test_a_picture_of_the_right_size_is_only_divided():
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(picture, 48, 48) * 255, picture.astype(np.float32))


def test_files_are_read_as_timm_reads_them(timm, tmp_path):
    """Grey, palette, alpha and CMYK become RGB; a rotation noted in EXIF is not applied."""
    from timm.data import ImageDataset

    photo = Image.open(SAMPLES / "china.jpg").convert("RGB").resize((64, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    photo.convert("L").save(tmp_path / "grey.png")
    photo.convert("P").save(tmp_path / "palette.png")
    see_through = photo.copy()
    see_through.putalpha(128)
    see_through.save(tmp_path / "alpha.png")
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
    folder = tmp_path / "some" / "class"
    folder.mkdir(parents=True)
    for file in sorted(tmp_path.glob("*.*")):
        alone = folder / file.name
        alone.write_bytes(file.read_bytes())
        want, _ = ImageDataset(str(tmp_path / "some"))[0]
        np.testing.assert_array_equal(read_picture(file), np.asarray(want), err_msg=file.name)
        alone.unlink()
    assert read_picture(tmp_path / "turned.jpg").shape == (40, 64, 3)


@pytest.mark.parametrize(
    ("picture", "words", "part"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2), "uint8 of shape .H, W, 3., got float32"),
        (np.zeros((4, 4), np.uint8), (2, 2), r"got uint8 of \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), (2, 2), r"got uint8 of \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), "is empty"),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), "asked for 0 x 2"),
        (np.zeros((4, 4, 3), np.uint8), (2, 2, 0.0), "crop_pct .* got 0.0"),
        (np.zeros((4, 4, 3), np.uint8), (2, 2, 1.1), "crop_pct .* got 1.1"),
        (np.zeros((4, 4, 3), np.uint8), (2, 2, 1.0, "bicubik"), "Did you mean 'bicubic'"),
    ],
)
def test_what_is_no_picture(picture, words, part):
    with pytest.raises(DataError, match=part):
        prepare(picture, *words)

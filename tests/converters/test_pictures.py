"""The pictures that artefacts are proven on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from converters.pictures import as_uint8, generated, photos, proof_pictures

SIZES = [(64, 64), (32, 96), (97, 41)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_shape_type_and_range(height: int, width: int) -> None:
    for made, count in (
        (photos(height, width), 6),
        (generated(5, height, width), 5),
        (proof_pictures(height, width), 9),
    ):
        assert made.shape == (count, height, width, 3)
        assert made.dtype == np.float32
        assert made.min() >= 0
        assert made.max() <= 1


def test_the_same_at_every_call_and_different_by_seed() -> None:
    np.testing.assert_array_equal(proof_pictures(48, 48), proof_pictures(48, 48))
    np.testing.assert_array_equal(generated(4, 32, 32, seed=3), generated(4, 32, 32, seed=3))
    assert not np.array_equal(generated(4, 32, 32, seed=3), generated(4, 32, 32, seed=4))


def test_more_pictures_begin_with_the_same_ones() -> None:
    np.testing.assert_array_equal(generated(2, 24, 24), generated(5, 24, 24)[:2])


def test_no_two_are_alike() -> None:
    """Error is taken over the change between inputs: each pair has to differ clearly."""
    for one, other in combinations(proof_pictures(64, 64), 2):
        assert np.abs(one - other).mean() > 0.05


def test_every_picture_has_content_in_every_channel() -> None:
    for picture in proof_pictures(64, 64):
        assert picture.std(axis=(0, 1)).min() > 0.02


def test_photos_are_real_and_upright() -> None:
    """The whole of china.jpg: sky above, brighter than the roofs below it; not mirrored."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")
    height, width = photo.shape[:2]
    side = min(height, width)
    left = (width - side) // 2
    square = Image.fromarray(photo[:, left : left + side])
    want = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(photos(64, 64)[0], want, atol=1e-6)


def test_any_small_size_works() -> None:
    assert np.isfinite(proof_pictures(2, 3)).all()
    assert np.isfinite(proof_pictures(1, 1)).all()


def test_as_uint8_rounds() -> None:
    made = as_uint8(np.array([0, 0.5 / 255, 0.6 / 255, 254.6 / 255, 1], np.float32))
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, [0, 0, 1, 255, 255])


def test_photos_survive_uint8() -> None:
    """They come from bytes, so bytes and floats of a bundle show the same picture."""
    crops = photos(40, 40)
    np.testing.assert_allclose(as_uint8(crops) / np.float32(255), crops, atol=1e-7)

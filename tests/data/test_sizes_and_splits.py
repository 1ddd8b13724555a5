"""Both splits at once, and pictures at the side of a model's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.data import DataError, Dataset, at_size, open_dataset, open_splits


def npz(path: Path) -> str:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 6, 7, 3), dtype=np.uint8)
    np.savez(path / "some.npz", images=images, labels=np.arange(30) % 3)
    return str(path / "some.npz")


def folder(path: Path) -> str:
    for part, count in (("train", 3), ("val", 2)):
        for name in ("a", "b"):
            (path / "pictures" / part / name).mkdir(parents=True)
            for i in range(count):
                colour = (60 * i, 200, 100 if part == "train" else 0)
                Image.new("RGB", (7, 6), colour).save(path / "pictures" / part / name / f"{i}.png")
    return str(path / "pictures")


def items(dataset: Dataset) -> list[tuple[bytes, int]]:
    return [
        (picture.tobytes(), label) for picture, label in (dataset[i] for i in range(len(dataset)))
    ]


@pytest.mark.parametrize("make", [npz, folder, lambda _: "digits", lambda _: "glyphs:10:3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_splits_are_those_that_are_opened_alone(make, seed: int, tmp_path: Path) -> None:
    ref = make(tmp_path)
    for split, dataset in zip(("train", "test"), open_splits(ref, seed=seed), strict=True):
        alone = open_dataset(ref, split, seed=seed)
        assert dataset.classes == alone.classes
        assert len(dataset) and items(dataset) == items(alone)


def test_the_splits_of_an_npz_share_its_pictures(tmp_path: Path) -> None:
    train, test = open_splits(npz(tmp_path))
    assert train.images is test.images


@pytest.mark.parametrize("ref", ["digits", "glyphs:10:3"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (48, 48)])
def test_pictures_of_any_size_get_the_longer_side(ref: str, height: int, width: int) -> None:
    sized = at_size(open_dataset(ref, "test"), height, width)
    assert items(sized) == items(open_dataset(ref, "test", size=48))


@pytest.mark.parametrize("make", [npz, folder])
def test_other_pictures_keep_their_own(make, tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path), "test")
    assert at_size(dataset, 32, 32) is dataset
    assert dataset[0][0].shape == (6, 7, 3)


@pytest.mark.parametrize("ref", ["digits", "glyphs:10:3"])
def test_a_side_that_is_too_small(ref: str) -> None:
    with pytest.raises(DataError, match=r"got (size )?4"):
        at_size(open_dataset(ref, "test"), 4, 4)

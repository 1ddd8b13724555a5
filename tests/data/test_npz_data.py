"""Arrays in an .npz, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.data import DataError, open_dataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def saved(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_pictures_labels_and_names(tmp_path, dtype):
    names = np.array(["cat", "dog", "größe"])
    ref = saved(tmp_path, images=IMAGES, labels=LABELS.astype(dtype), classes=names, more=[1])
    whole = open_dataset(ref, "all")
    assert whole.classes == ("cat", "dog", "größe") and len(whole) == 30
    for index, (picture, label) in enumerate(whole):
        np.testing.assert_array_equal(picture, IMAGES[index])
        assert label == LABELS[index] and type(label) is int
    picture[:] = 0
    assert whole[29][0].any(), "what a reader does to his picture stays with him"
    train, test = (open_dataset(ref, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 6)
    assert np.bincount([label for _, label in test]).tolist() == [2, 2, 2]
    assert not set(train.indices) & set(test.indices)


def test_without_names_the_numbers_are_names(tmp_path):
    assert open_dataset(saved(tmp_path, images=IMAGES, labels=LABELS)).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"images": None}, "no array 'images', expected"),
        ({"labels": None, "label": LABELS}, "has: images, label. Did you mean 'label'"),
        ({"images": IMAGES / 255}, r"expected uint8 of shape .* got float64 of shape"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"got uint8 of shape \(30, 3, 6, 5\)"),
        ({"images": IMAGES[..., 0]}, r"got uint8 of shape \(30, 6, 5\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "has no pictures"),
        ({"labels": LABELS[:-1]}, r"expected 30 integers, .* got int64 of shape \(29,\)"),
        ({"labels": LABELS.astype(float)}, "expected 30 integers, .* got float64"),
        ({"labels": np.eye(3)[LABELS]}, r"got float64 of shape \(30, 3\)"),
        ({"labels": LABELS - 1}, "labels count from 0, got -1"),
        ({"labels": LABELS * 0}, "expected at least 2 classes, got 1"),
        ({"labels": LABELS * 2}, "class '1' has no pictures"),
        ({"classes": np.array(["a", "b"])}, "label 2 is none of the 2 classes"),
        ({"classes": np.array(["a", "b", "c", "d"])}, "class 'd' has no pictures"),
        ({"classes": np.array(["a", "b", "a"])}, "the class name 'a' is there twice"),
        ({"classes": np.arange(3)}, r"'classes': expected text .* got int64"),
        ({"classes": np.array(["a", "b", "c"], dtype=object)}, "'classes' is not plain numpy"),
        ({"labels": np.array([None] * 30)}, "Pickled objects could run code and are not loaded"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, part):
    arrays = {"images": IMAGES, "labels": LABELS} | change
    ref = saved(tmp_path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=part):
        open_dataset(ref)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a readable"):
        open_dataset(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is not a readable"):
        open_dataset(str(path))
    path.write_text("images, labels")
    with pytest.raises(DataError, match="not plain numpy data"):
        open_dataset(str(path))
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="holds one array without a name"):
        open_dataset(str(path))

"""The drawn letters: reproducible anywhere, never shared between splits, and readable."""

from __future__ import annotations

import io
import pickle
import string
import subprocess
import sys

import numpy as np
import pytest
from cli_tools import ROOT

from edgevit.data import DataError, open_dataset
from edgevit.data.digits import _read
from edgevit.data.glyph_drawing import LEAST_CONTRAST, LUMA, ROOM, _palette, letter_mask

ITEMS_OF_A_COPY = """
import pickle, sys
import numpy as np
dataset, order = pickle.load(sys.stdin.buffer)
pictures, labels = zip(*(dataset[i] for i in order))
np.savez(sys.stdout.buffer, pictures=np.stack(pictures), labels=labels)
"""


def items(dataset, indices):
    """The pictures at these indices, one behind the other, and the labels."""
    pairs = [dataset[i] for i in indices]
    return np.stack([picture for picture, _ in pairs]), [label for _, label in pairs]


def test_counts_classes_and_types():
    train, test = open_dataset("glyphs"), open_dataset("glyphs", "test")
    assert (len(train), len(test), len(open_dataset("glyphs", "all"))) == (18000, 3600, 21600)
    assert "".join(train.classes) == string.digits + string.ascii_uppercase
    every = open_dataset("glyphs:62:7")
    assert len(every) == 62 * 7 and len(open_dataset("glyphs:62:7", "test")) == 62
    assert "".join(every.classes[36:]) == string.ascii_lowercase
    picture, label = every[-1]
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and label == 61
    assert open_dataset("glyphs:10", size=33)[3][0].shape == (33, 33, 3)
    assert [label for _, label in (every[i] for i in range(124))] == [*range(62), *range(62)]


def test_iteration_ends():
    assert sum(1 for _ in open_dataset("glyphs:10:2", size=16)) == 20
    with pytest.raises(IndexError):
        open_dataset("glyphs:10:2")[20]
    with pytest.raises(IndexError):
        open_dataset("glyphs:10:2")[-21]


def test_an_item_depends_on_nothing_but_its_place():
    """In another order, from a copy, and in a process that was started afresh."""
    dataset = open_dataset("glyphs:36:5", size=32, seed=3)
    order = [7, 0, 100, 7, 35]
    want, labels = items(dataset, order)
    np.testing.assert_array_equal(items(dataset, order[::-1])[0][::-1], want)
    fresh = subprocess.run(
        [sys.executable, "-c", ITEMS_OF_A_COPY],
        input=pickle.dumps((dataset, order)),
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    got = np.load(io.BytesIO(fresh.stdout))
    np.testing.assert_array_equal(got["pictures"], want)
    assert got["labels"].tolist() == labels == [7, 0, 28, 7, 35]


def test_no_item_is_in_two_splits_or_of_two_seeds():
    seen = set()
    for split, seed in (("train", 0), ("test", 0), ("train", 1), ("test", 1)):
        dataset = open_dataset("glyphs:10:60", split, size=16, seed=seed)
        seen |= {picture.tobytes() for picture, _ in dataset}
    assert len(seen) == 2 * 10 * (60 + 12)


def test_all_is_both():
    parts = [picture for s in ("train", "test") for picture, _ in open_dataset("glyphs:10:5", s)]
    both = [picture for picture, _ in open_dataset("glyphs:10:5", "all")]
    np.testing.assert_array_equal(np.stack(both), np.stack(parts))


def test_more_pictures_begin_with_the_same_ones():
    few, many = open_dataset("glyphs:10:1"), open_dataset("glyphs:10:9")
    np.testing.assert_array_equal(items(few, range(10))[0], items(many, range(10))[0])


def test_another_size_shows_the_same_scene():
    """Means of blocks of the large picture are the small one, but for noise and sharp edges."""
    small, large = (open_dataset("glyphs:36:2", size=size) for size in (32, 96))
    blocks = items(large, range(40))[0].reshape(40, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    for one, other in zip(items(small, range(40))[0], blocks, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8


def test_letters_stay_where_a_centre_crop_leaves_them():
    dataset = open_dataset("glyphs:62:1")
    sizes, centres = [], []
    for index in range(300):
        rng = np.random.default_rng(index)
        font = dataset.fonts[index % len(dataset.fonts)]
        mask = np.asarray(letter_mask(dataset.classes[index % 62], font, 100, rng)) > 25
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        for found in (rows, columns):
            assert found[0] >= 100 * (0.5 - ROOM) - 1 and found[-1] <= 100 * (0.5 + ROOM)
            centres.append((found[0] + found[-1]) / 2)
        sizes.append(rows[-1] - rows[0])
    assert min(sizes) >= 20 and max(sizes) - min(sizes) >= 30
    assert np.std(centres) > 5, "letters are moved about"


def test_a_letter_differs_in_brightness_from_all_behind_it():
    for seed in range(500):
        palette = _palette(np.random.default_rng(seed))
        ink = palette.ink @ LUMA
        assert np.abs(palette.corners @ LUMA - ink).min() >= LEAST_CONTRAST
        assert np.abs(palette.shapes @ LUMA - ink).min() >= LEAST_CONTRAST - 10  # rounded to 0..255


def test_labels_are_what_is_drawn_and_the_task_is_not_trivial():
    """Linear discriminants on smoothed contours: far better than guessing, far from perfect."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    def contours(split):
        pictures, labels = items(open_dataset("glyphs:10:100", split, size=32), range(200))
        grey = pictures @ LUMA.astype(np.float32)
        slope = np.hypot(*np.gradient(grey, axis=(1, 2)))
        return slope.reshape(200, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(200, -1), labels

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(*contours("train"))
    assert 0.2 < model.score(*contours("test")) < 0.9


@pytest.mark.parametrize(
    ("ref", "size", "part"),
    [
        ("glyphs:9", None, "10 to 62 classes, got 9"),
        ("glyphs:63", None, "10 to 62 classes, got 63"),
        ("glyphs:10:0", None, "at least 1 picture a class, got 0"),
        ("glyphs:ten", None, "expected glyphs, glyphs:CLASSES or glyphs:CLASSES:COUNT"),
        ("glyphs:10:5:3", None, "expected glyphs, glyphs:CLASSES or glyphs:CLASSES:COUNT"),
        ("glyphs:", None, "expected glyphs, glyphs:CLASSES or glyphs:CLASSES:COUNT"),
        ("glyphs", 15, "cannot be read below 16 x 16 pixels, got 15"),
    ],
)
def test_what_cannot_be_drawn(ref, size, part):
    with pytest.raises(DataError, match=part):
        open_dataset(ref, size=size)


def test_without_the_packages_whose_files_are_used_the_extra_is_named(monkeypatch):
    _read.cache_clear()
    monkeypatch.setattr("edgevit.data.errors.find_spec", lambda name: None)
    for ref, package in (("glyphs", "matplotlib"), ("digits", "scikit-learn")):
        with pytest.raises(DataError, match=rf"'{package}'.*edgevit\[train\]"):
            open_dataset(ref)

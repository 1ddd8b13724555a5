"""scikit-learn's digits, read without it, and how data without splits are split."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgevit.data import DataError, open_dataset
from edgevit.data.dataset import split_indices


@pytest.fixture(scope="module")
def sklearn_digits():
    from sklearn.datasets import load_digits

    return load_digits()


def test_the_same_pictures_as_scikit_learn(sklearn_digits):
    dataset = open_dataset("digits", "all", size=8)
    want = np.rint(sklearn_digits.images * 255 / 16).astype(np.uint8)
    got = np.stack([picture for picture, _ in dataset])
    np.testing.assert_array_equal(got, np.repeat(want[..., None], 3, axis=-1))
    assert [label for _, label in dataset] == sklearn_digits.target.tolist()
    assert dataset.classes == tuple("0123456789")


def test_enlarged_they_are_still_the_same():
    for size, side in ((None, 32), (64, 64)):
        picture, _ = open_dataset("digits", "all", size=size)[0]
        assert picture.shape == (side, side, 3) and picture.dtype == np.uint8
        blocks = picture.reshape(8, side // 8, 8, side // 8, 3).mean(axis=(1, 3))
        small, _ = open_dataset("digits", "all", size=8)[0]
        assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.97


def test_the_split_is_stratified_seeded_and_whole(sklearn_digits):
    counts = np.bincount(sklearn_digits.target)
    parts = {}
    for seed in (0, 1):
        train, test = (open_dataset("digits", s, seed=seed) for s in ("train", "test"))
        parts[seed] = test.indices
        np.testing.assert_array_equal(
            np.sort(np.concatenate([train.indices, test.indices])), np.arange(1797)
        )
        held_out = np.bincount([label for _, label in test])
        np.testing.assert_array_equal(held_out, np.round(counts * 0.2))
        again = open_dataset("digits", "test", seed=seed)
        np.testing.assert_array_equal(again.indices, test.indices)
    common = len(np.intersect1d(parts[0], parts[1])) / len(parts[0])
    assert common < 0.35, "another seed holds out others; by chance a fifth is common"


def test_small_classes_are_split_too_and_one_class_does_not_move_another():
    labels = np.array([0] * 2 + [1] * 4 + [2] * 50)
    test = split_indices(labels, "abc", "test", 0, "here")
    np.testing.assert_array_equal(np.bincount(labels[test]), [1, 1, 10])
    fewer = split_indices(labels[2:] - 1, "bc", "test", 0, "here")
    assert len(fewer) == 11
    with pytest.raises(DataError, match="class 'b' has 1 picture, and a split"):
        split_indices(np.array([0, 0, 1]), "ab", "train", 0, "here")
    assert len(split_indices(np.array([0, 0, 1]), "ab", "all", 0, "here")) == 3
    with pytest.raises(DataError, match="class 'b' has no pictures"):
        split_indices(np.array([0, 0]), "ab", "all", 0, "here")


@pytest.mark.parametrize(
    ("ref", "words", "part"),
    [
        ("digits", {"size": 7}, "8 x 8 pixels and are not shrunk, got size 7"),
        ("digits", {"size": 0}, "positive number of pixels, got 0"),
        ("digits", {"seed": -1}, "a seed is 0 or more, got -1"),
        ("digits", {"split": "tset"}, "unknown split 'tset'.*Did you mean 'test'"),
        ("digits:5", {}, "takes nothing behind its name"),
        ("digts", {}, "no such data: 'digts'.*Did you mean 'digits'"),
    ],
)
def test_wrong_requests(ref, words, part):
    with pytest.raises(DataError, match=part):
        open_dataset(ref, **words)


def test_nothing_heavy_is_imported():
    """numpy and, to draw or to resize, PIL; the packages whose files are used stay on the disk."""
    code = (
        "import sys; from edgevit.data import open_dataset, prepare\n"
        "for ref in ('digits', 'glyphs'): prepare(open_dataset(ref, 'test')[0][0], 16, 16)\n"
        "print({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'sklearn', 'scipy', 'matplotlib', 'pydantic', 'runtime', 'converters'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"

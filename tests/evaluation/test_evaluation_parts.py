"""Ranks, intervals and class names, each against another way to the same answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.evaluation import EvaluationError
from edgevit.evaluation.class_names import check_count, check_names
from edgevit.evaluation.evaluate import ranks
from edgevit.evaluation.record import share

LABELS = Path("some/labels.txt")


@pytest.mark.parametrize("of", [1, 2, 17, 360, 50_000])
def test_the_interval_is_wilsons(of):
    from scipy.stats import binomtest  # slow to import, and every process collects every file

    for correct in {0, 1, of // 3, of - 1, of}:
        found = share(correct, of)
        want = binomtest(correct, of).proportion_ci(0.95, method="wilson")
        assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-12)
        assert 0 <= found.low <= found.fraction == correct / of <= found.high <= 1
        assert found.high > found.low


@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_ranks_are_places_in_a_stable_sort(classes):
    rng = np.random.default_rng(classes)
    logits = rng.standard_normal((50, classes)).astype(np.float32).round(1)  # with ties
    truth = rng.integers(classes, size=50)
    order = np.argsort(-logits, axis=1, kind="stable")
    want = [row.tolist().index(label) for row, label in zip(order, truth, strict=True)]
    assert ranks(logits, truth).tolist() == want
    assert ((ranks(logits, truth) == 0) == (logits.argmax(1) == truth)).all()


def test_a_constant_answer_is_right_for_one_class_only():
    assert ranks(np.zeros((6, 6)), np.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_class_names_in_order():
    assert "are those of labels.txt" in check_names(["cat ", "dog"], ["cat", "dog"], LABELS)


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["dog", "cat", "owl"], "in another order: class 0 is 'dog' there and 'cat' in the data"),
        (["cat", "owl", "dog"], "in another order: class 1 is 'owl' there and 'dog' in the data"),
        (["cat", "dog", "bat"], "name different classes: class 2 is 'bat' there and 'owl'"),
        (["cat", "dog"], "has 2 labels and the data have 3 classes"),
        (["cat", "dog", "owl", "bat"], "has 4 labels and the data have 3 classes"),
    ],
)
def test_class_names_that_are_wrong(labels, part):
    with pytest.raises(EvaluationError, match=part) as caught:
        check_names(labels, ["cat", "dog", "owl"], LABELS)
    assert caught.value.exit_code == 2 and "some/labels.txt" in str(caught.value)


def test_other_words_prove_nothing():
    told = check_names(["tench", "goldfish"], ["n01440764", "n01443537"], LABELS)
    assert "could not be checked" in told and "'tench', 'n01440764'" in told


def test_counts():
    check_count(2, ["cat", "dog"], "m")
    with pytest.raises(EvaluationError, match=r"m tells 1000 classes apart and the data have 2 \("):
        check_count(1000, ["cat", "dog"], "m")

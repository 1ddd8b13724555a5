"""Ratios and names: the arithmetic and the wording below the verdict."""

from __future__ import annotations

import pytest
from report_records import measurement, passed, record, three_engines

from edgevit.reports.present import (
    decimals_for,
    fraction,
    labels,
    page_names,
    scientific,
    verification_mark,
)
from edgevit.reports.ratios import fastest, ratio_of, times
from runtime.manifest import Verification
from runtime.run_record import Comparison

FAST = [[1.0, 1.0, 1.0]] * 5
SLOW = [[2.0, 2.0, 2.0], [2.2, 2.2, 2.2], [2.1, 2.1, 2.1], [2.1, 2.1, 2.1], [2.1, 2.1, 2.1]]


def pair(**more: object):
    a = measurement("a", "litert", 0, 1, blocks=FAST)
    b = measurement("b", "onnxruntime", 0, 2, blocks=SLOW)
    return a, b, record([a, b], **more)


def test_the_records_own_comparison_is_used_as_it_is() -> None:
    a, b, run = pair(comparisons=[Comparison(a="b", b="a", ratio=2.5, low=2.4, high=2.6)])
    r = ratio_of(run, b, a)
    assert (r.value, r.low, r.high) == (2.5, 2.4, 2.6)
    assert r.spread == "2.40–2.60"
    assert r.clear


def test_a_comparison_read_backwards_turns_its_bounds_around() -> None:
    a, b, run = pair(comparisons=[Comparison(a="a", b="b", ratio=0.5, low=0.4, high=0.8)])
    r = ratio_of(run, b, a)
    assert (r.value, r.low, r.high) == (2.0, 1.25, 2.5)


def test_without_a_comparison_the_blocks_give_the_spread() -> None:
    a, b, run = pair(comparisons=[])
    r = ratio_of(run, b, a)
    # block ratios 2.0 2.1 2.1 2.1 2.2: linear percentiles 5 and 95 lie 0.2 and 3.8 steps in
    assert r.value == pytest.approx(2.1)
    assert r.low == pytest.approx(2.02)
    assert r.high == pytest.approx(2.18)


def test_one_block_has_no_spread() -> None:
    a = measurement("a", "litert", 0, 1, blocks=[[1.0, 1.0]])
    b = measurement("b", "litert", 0, 2, blocks=[[3.0, 3.0]])
    r = ratio_of(record([a, b], comparisons=[]), b, a)
    assert r.value == 3.0
    assert r.spread is None
    assert not r.clear


def test_an_artefact_with_wrong_numbers_cannot_be_fastest() -> None:
    wrong = measurement("a", "litert", 0, 1, blocks=FAST, verification=passed(1, status="failed"))
    right = measurement("b", "litert", 0, 2, blocks=SLOW)
    assert fastest([wrong, right]) is right
    assert fastest([wrong]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.6e-6, "1.6e-6"),
        (9e-7, "9e-7"),
        (1e-4, "1e-4"),
        (0.48, "0.48"),
        (0.0, "0"),
        (0.02, "0.02"),
    ],
)
def test_scientific(value: float, text: str) -> None:
    assert scientific(value) == text


def test_numbers_are_not_rounded_to_a_better_one() -> None:
    assert fraction(0.9996) == "99.9 %"
    assert fraction(1.0) == "100 %"
    assert fraction(0.9375) == "93.8 %"
    assert times(1.004) == "1.00"
    assert times(12.34) == "12.3"
    assert times(123.4) == "123"
    assert [decimals_for([v]) for v in (0.37, 5.6, 26.1)] == [3, 2, 1]
    assert decimals_for([126.0, 5.6]) == 2


@pytest.mark.parametrize(
    ("verification", "kind", "glyph"),
    [
        (passed(), "passed", "✓"),
        (passed(0.5, status="failed"), "failed", "✕"),
        (Verification(status="not_executed", prover="coreml", reason="macOS only"),
         "not_executed", "○"),
        (passed(prover="mil_reference 0.1.0"), "simulated", "≈"),
        (None, "unverified", "–"),
    ],
)  # fmt: skip
def test_only_a_proof_on_the_engine_itself_is_a_tick(verification, kind, glyph) -> None:
    m = measurement("coreml", "coreml", 5.0, 1, verification=verification)
    mark = verification_mark(m)
    assert (mark.kind, mark.glyph) == (kind, glyph)
    assert ("✓" in mark.glyph + mark.text) == (kind == "passed")


def test_the_mark_names_another_prover_than_the_engine() -> None:
    same = measurement("a", "litert", 5.0, 1, verification=passed(prover="litert 2.3.0"))
    other = measurement("a", "litert", 5.0, 1, verification=passed(prover="tflite_runtime 2.14"))
    assert "by" not in verification_mark(same).detail
    assert "by tflite_runtime 2.14" in verification_mark(other).detail


def test_labels_that_coincide_are_told_apart() -> None:
    a = measurement("a", "litert", 5.0, 1, label="same", file="x/model.tflite")
    b = measurement("b", "litert", 5.0, 2, label="same", file="y/model.tflite")
    c = measurement("c", "litert", 5.0, 3, label="other")
    assert labels(record([a, b, c])) == ["same (x/model.tflite)", "same (y/model.tflite)", "other"]
    b = b.model_copy(update={"file": "x/model.tflite"})
    assert len(set(labels(record([a, b])))) == 2


def test_two_runs_of_one_device_get_different_names() -> None:
    names = page_names([three_engines(), three_engines()])
    assert names[0][0] == "shvit_s1 tflite · AMD EPYC 9654, run 1"
    assert len({n for own in names for n in own}) == 6

"""The mathematics of the verdict, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.compare import GATES, agreement, verify_outputs
from runtime.errors import RuntimeFault

REFERENCE = np.array([[0.0, 1.0], [4.0, 2.0]], np.float32)
LOGITS = np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


def test_numbers_by_hand():
    got = np.array([[0.4, 1.0], [4.0, 2.0]], np.float32)
    found = agreement(REFERENCE, got)
    assert found.spread == 4.0
    assert found.error_over_spread == pytest.approx(0.1)
    # centred: reference rows -/+(2, 0.5), got rows -/+(1.8, 0.5)
    dot, norms = 2 * (2 * 1.8 + 0.25), 2 * np.sqrt((4 + 0.25) * (3.24 + 0.25))
    assert found.cosine_centred == pytest.approx(dot / norms)
    assert found.top1_agreement == 1.0


def test_spread_is_the_largest_change_of_one_output_between_inputs():
    reference = np.array([[0.0, 100.0], [1.0, 100.0], [3.0, 102.0]])
    assert agreement(reference, reference).spread == 3.0


def test_top1_counts_and_forgives_ties_only_within_the_margin():
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.49], [-1.0, 0.0]])  # spread 2
    got = np.array([[1.0, 0.0], [0.0, 1.0], [0.49, 0.5], [0.0, -1.0]])
    assert agreement(reference, got).top1_agreement == 0.5
    assert agreement(reference, got, tie_margin=0.01).top1_agreement == 0.75
    assert agreement(reference, got, tie_margin=0.6).top1_agreement == 1.0


def test_gates_of_fp32():
    error = np.zeros_like(LOGITS)
    spread = np.ptp(LOGITS, axis=0).max()
    error[3, 4] = 0.9e-4 * spread
    passed = verify_outputs(LOGITS, LOGITS + error, "fp32", "engine 1.0")
    assert (passed.status, passed.prover, passed.inputs) == ("passed", "engine 1.0", 16)
    assert passed.error_over_spread == pytest.approx(0.9e-4, rel=0.01)
    assert passed.gates == GATES["fp32"] and passed.reason is None
    failed = verify_outputs(LOGITS, LOGITS + 1.2 * error, "fp32", "engine 1.0")
    assert failed.status == "failed"
    assert failed.reason == "error_over_spread 0.000108 is above 0.0001"


@pytest.mark.parametrize(("precision", "noise"), [("fp16", 0.005), ("int8", 0.05), ("w8", 0.05)])
def test_gates_of_the_smaller_precisions(precision, noise):
    error = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
    assert verify_outputs(LOGITS, LOGITS + noise * error, precision, "p").status == "passed"
    assert verify_outputs(LOGITS, LOGITS + 20 * noise * error, precision, "p").status == "failed"


@pytest.mark.parametrize("precision", GATES)
def test_constant_artefact_never_passes(precision):
    constant = np.repeat(LOGITS.mean(axis=0, keepdims=True), len(LOGITS), axis=0)
    found = verify_outputs(LOGITS, constant, precision, "p")
    assert found.status == "failed" and "same output for every input" in found.reason


@pytest.mark.parametrize("precision", GATES)
def test_scaled_output_never_passes(precision):
    """The cosine and the top-1 are blind to a factor."""
    assert verify_outputs(LOGITS, 3 * LOGITS, precision, "p").status == "failed"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(bad):
    got = LOGITS.copy()
    got[5, 2] = bad
    found = verify_outputs(LOGITS, got, "int8", "p")
    assert found.status == "failed"
    assert found.reason == "NaN or infinite outputs for 1 of 16 inputs"
    found = verify_outputs(got, LOGITS, "int8", "p")
    assert found.status == "failed" and "reference itself" in found.reason


def test_reference_without_spread_proves_nothing():
    constant = np.ones((4, 3), np.float32)
    found = verify_outputs(constant, constant, "fp32", "p")
    assert found.status == "failed" and "nothing about the artefact can be proven" in found.reason
    one = verify_outputs(LOGITS[:1], LOGITS[:1], "fp32", "p")
    assert one.status == "failed" and "at least two different inputs" in one.reason
    with pytest.raises(RuntimeFault, match="same output for all 4 inputs"):
        agreement(constant, constant)


def test_unequal_shapes_and_unknown_precision():
    with pytest.raises(RuntimeFault, match=r"expected shape \(16, 10\).*got \(16, 9\)"):
        verify_outputs(LOGITS, LOGITS[:, 1:], "fp32", "p")
    with pytest.raises(RuntimeFault, match="unknown precision 'fp8', known: fp32, fp16"):
        verify_outputs(LOGITS, LOGITS, "fp8", "p")

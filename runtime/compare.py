"""Compare an artefact's outputs with the torch reference, and judge.

An error only means something beside what the model says about different inputs: a deep random
network is nearly constant, and an artefact that ignores its input would pass any test of relative
error. So the error is taken over the spread of the reference between inputs, and the cosine after
each side's mean over the inputs is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.errors import RuntimeFault
from runtime.manifest import Verification
from runtime.sessions.base import Array

# error_over_spread at most; cosine_centred and top1_agreement at least. A top-1 that differs counts
# as agreement where the reference puts the two classes closer together than tie_margin of the
# spread: an artefact within its precision's error may settle such a tie either way. The cosine and
# the top-1 do not see a scaled output, hence an error gate for every precision.
_FLOAT16 = {
    "error_over_spread": 0.1,
    "cosine_centred": 0.999,
    "top1_agreement": 0.99,
    "tie_margin": 0.01,
}
_INTEGER = {
    "error_over_spread": 0.5,
    "cosine_centred": 0.99,
    "top1_agreement": 0.9,
    "tie_margin": 0.05,
}
GATES: dict[str, dict[str, float]] = {
    "fp32": {"error_over_spread": 1e-4},
    "fp16": _FLOAT16,
    "w8": _INTEGER,
    "w8a16": _INTEGER,
    "w8a8": _INTEGER,
    "int8": _INTEGER,
}


@dataclass(frozen=True)
class Agreement:
    """How close (N,K) outputs are to the reference; all four are dimensionless but `spread`.

    spread: the largest change of a reference output between two inputs, in the reference's unit.
    error_over_spread: the largest absolute error over the spread.
    cosine_centred: the cosine of all outputs after each side's own mean over the inputs is gone.
    top1_agreement: the fraction of inputs whose top-1 agrees or is a tie.
    """

    spread: float
    error_over_spread: float
    cosine_centred: float
    top1_agreement: float


def agreement(reference_NK: Array, got_NK: Array, tie_margin: float = 0.0) -> Agreement:
    """Compare finite outputs (N,K) with the reference (N,K), over N >= 2 inputs.

    tie_margin is a fraction of the spread. Raises RuntimeFault for unequal shapes or a reference
    without spread.
    """
    _same_shape(reference_NK, got_NK)
    ref, got = reference_NK.astype(np.float64), got_NK.astype(np.float64)
    spread = float(np.ptp(ref, axis=0).max()) if ref.size else 0.0
    if not spread > 0:
        raise RuntimeFault(_no_spread(len(ref)))
    centred_ref, centred_got = ref - ref.mean(axis=0), got - got.mean(axis=0)
    norms = float(np.linalg.norm(centred_ref) * np.linalg.norm(centred_got))
    cosine = float((centred_ref * centred_got).sum()) / norms if norms else 0.0
    rows = np.arange(len(ref))
    margin = ref.max(axis=1) - ref[rows, got.argmax(axis=1)]
    return Agreement(
        spread=spread,
        error_over_spread=float(np.abs(got - ref).max()) / spread,
        cosine_centred=cosine,
        top1_agreement=float((margin <= tie_margin * spread).mean()),
    )


def verify_outputs(reference_NK: Array, got_NK: Array, precision: str, prover: str) -> Verification:
    """Judge an artefact's outputs (N,K) by the gates of its precision.

    prover names what ran the artefact. Never passes on NaN, infinity, one input only, or a
    reference without spread. Raises RuntimeFault for unequal shapes or an unknown precision.
    """
    if precision not in GATES:
        raise RuntimeFault(f"unknown precision '{precision}', known: {', '.join(GATES)}")
    _same_shape(reference_NK, got_NK)
    gates = GATES[precision]
    n = len(reference_NK)
    reason = None
    if not np.isfinite(reference_NK).all():
        reason = "the torch reference itself has NaN or infinite outputs"
    elif not np.isfinite(got_NK).all():
        bad = int((~np.isfinite(got_NK)).any(axis=tuple(range(1, got_NK.ndim))).sum())
        reason = f"NaN or infinite outputs for {bad} of {n} inputs"
    elif not np.ptp(reference_NK, axis=0).any():
        reason = _no_spread(n)
    if reason is not None:
        return Verification(
            status="failed", prover=prover, inputs=n, gates=dict(gates), reason=reason
        )
    found = agreement(reference_NK, got_NK, gates.get("tie_margin", 0.0))
    reason = _verdict(found, gates, got_NK)
    return Verification(
        status="failed" if reason else "passed",
        prover=prover,
        inputs=n,
        error_over_spread=found.error_over_spread,
        cosine_centred=found.cosine_centred,
        top1_agreement=found.top1_agreement,
        spread=found.spread,
        gates=dict(gates),
        reason=reason,
    )


def _verdict(found: Agreement, gates: dict[str, float], got_NK: Array) -> str | None:
    """Why the outputs fail, None where they pass."""
    problems = []
    error, limit = found.error_over_spread, gates["error_over_spread"]
    if error > limit:
        problems.append(f"error_over_spread {error:.3g} is above {limit:g}")
    for name in ("cosine_centred", "top1_agreement"):
        if name in gates and getattr(found, name) < gates[name]:
            problems.append(f"{name} {getattr(found, name):.4f} is below {gates[name]:g}")
    if problems and not np.ptp(got_NK, axis=0).any():
        problems.append("the artefact gives the same output for every input")
    return "; ".join(problems) or None


def _same_shape(reference_NK: Array, got_NK: Array) -> None:
    if reference_NK.ndim != 2 or reference_NK.shape != got_NK.shape:
        raise RuntimeFault(
            f"outputs: expected shape {reference_NK.shape} (inputs, classes), got {got_NK.shape}"
        )


def _no_spread(n: int) -> str:
    return (
        "one input shows no spread: give at least two different inputs"
        if n < 2
        else f"the torch reference gives the same output for all {n} inputs, so nothing about the "
        "artefact can be proven: check the weights, or give inputs that differ"
    )

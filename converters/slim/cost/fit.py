"""The correction of an additive prediction: a + b * sum, fitted on whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.slim.errors import SlimFailed

LEAST = 4
"""Networks for a fit: two numbers are fitted, and each network in turn is left out."""


@dataclass(frozen=True)
class Fit:
    """ms = a_ms + b * the sum of the parts, and how well that predicts.

    error is the mean absolute error, as a fraction of the measured latency, of each network
    predicted by the fit of the others; error_of_all that of the fit on its own networks.
    """

    a_ms: float
    b: float
    networks: int
    error: float
    error_of_all: float

    def ms(self, parts_ms: float) -> float:
        """The prediction for a sum of parts."""
        return self.a_ms + self.b * parts_ms


def fit(parts_ms: Sequence[float], measured_ms: Sequence[float]) -> Fit:
    """Relative least squares: the sum of ((a + b * parts) / measured - 1)^2 is least.

    So a fast network counts as much as a slow one. Raises SlimFailed for fewer than LEAST networks,
    and where a larger sum would not mean a larger latency.
    """
    parts, measured = np.asarray(parts_ms, float), np.asarray(measured_ms, float)
    if len(parts) < LEAST:
        raise SlimFailed(f"a fit needs at least {LEAST} measured networks, got {len(parts)}")
    a, b = _solve(parts, measured)
    if not b > 0:
        raise SlimFailed(
            f"the {len(parts)} measured networks do not become slower with the sum of their parts "
            f"(b = {b:.3g}): they are too much alike, or the machine was disturbed. Measure again, "
            "or more of them"
        )
    others = ~np.eye(len(parts), dtype=bool)
    left_out = np.array([_solve(parts[keep], measured[keep]) for keep in others])
    predicted = left_out[:, 0] + left_out[:, 1] * parts
    return Fit(
        a, b, len(parts), mean_error(predicted, measured), mean_error(a + b * parts, measured)
    )


def mean_error(predicted_ms: Sequence[float] | np.ndarray, measured_ms: np.ndarray) -> float:
    """The mean absolute percentage error, as a fraction."""
    return float(np.mean(np.abs(np.asarray(predicted_ms) / measured_ms - 1)))


def _solve(parts: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    rows = np.stack([1 / measured, parts / measured], axis=1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones(len(parts)), rcond=None)
    return float(a), float(b)

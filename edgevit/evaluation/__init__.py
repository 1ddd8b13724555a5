"""How often a model, and each of its artefacts on its engine, is right on labelled pictures."""

from __future__ import annotations

from edgevit.evaluation.errors import EvaluationError
from edgevit.evaluation.evaluate import evaluate
from edgevit.evaluation.options import EvalOptions
from edgevit.evaluation.record import Agreement, Evaluation, Result, Share

__all__ = [
    "Agreement",
    "EvalOptions",
    "Evaluation",
    "EvaluationError",
    "Result",
    "Share",
    "evaluate",
]

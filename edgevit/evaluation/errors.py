"""The one error type of evaluation."""

from __future__ import annotations

from typing import ClassVar


class EvaluationError(Exception):
    """A model and data that do not go together; the command line prints it without a traceback."""

    exit_code: ClassVar[int] = 2

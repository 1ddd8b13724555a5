"""What torch and the model's own code print is not our output: it goes to a log."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def chatter_to(log: Path | None) -> Iterator[None]:
    """Keep what Python code prints to stdout, and its warnings, for the file `log` (None: nowhere).

    A disk that does not take the log is no error.
    """
    said = io.StringIO()

    def note(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        said.write(warnings.formatwarning(message, category, filename, lineno, line))

    try:
        with redirect_stdout(said), warnings.catch_warnings():
            warnings.showwarning = note
            yield
    finally:
        if log is not None and said.getvalue():
            with suppress(OSError):
                log.write_text(said.getvalue(), encoding="utf-8")

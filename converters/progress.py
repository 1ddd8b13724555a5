"""What a conversion tells while it runs. The command line draws it; a program may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The stages of a conversion, in order; lower and verify happen once a target."""

    LOAD = "load"
    EXPORT = "export"
    REPARAM = "reparam"
    LOWER = "lower"
    VERIFY = "verify"
    BUNDLE = "bundle"


@dataclass(frozen=True)
class Event:
    """A stage began, ended (seconds is set) or failed (error is set)."""

    stage: Stage
    target: str | None = None
    seconds: float | None = None
    error: str | None = None
    detail: str = ""


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default listener: nobody."""

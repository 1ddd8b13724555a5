"""What a run in steps tells while it goes. The command line draws it; a program may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What happens to a step. REUSED: an earlier run that was cut off had done it."""

    RUNNING = "running"
    DONE = "done"
    REUSED = "reused"


@dataclass(frozen=True)
class Event:
    """One step's news. share is the part of it that is done, 0 to 1; text says what it is at."""

    step: str
    state: State
    share: float = 0.0
    text: str = ""


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The default listener: nobody."""

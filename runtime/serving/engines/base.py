"""An engine as a served model sees it: in a process of its own, or in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.serving.engines.form import Form
from runtime.sessions.base import Array


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with. Times in seconds; max_batch in rows."""

    path: Path
    threads: int = 1
    max_batch: int = 16
    load_timeout_s: float = 120.0
    run_timeout_s: float = 60.0


@dataclass(frozen=True)
class Loaded:
    """What an engine tells when it is ready."""

    engine: str
    engine_version: str
    form: Form


@dataclass(frozen=True)
class Ran:
    """The answers of one run, one for each part of it, and the microseconds of its steps."""

    outputs: list[Array]
    decode_us: int
    compute_us: int
    encode_us: int


class Engine(Protocol):
    """One session of one artefact. Of one event loop; one run at a time."""

    pid: int | None
    """Of its own process, None where it has none."""

    @property
    def alive(self) -> bool:
        """Whether it can run: started, and neither ended nor closed."""
        ...

    async def start(self) -> Loaded:
        """Load. Raises Refused: FAILED_PRECONDITION, UNAVAILABLE, DEADLINE_EXCEEDED."""
        ...

    def run(self, parts: Sequence[Array]) -> asyncio.Future[Ran]:
        """Run requests together, as the form allows; they are checked already and kept as they are.

        The future raises Refused: INTERNAL where the engine cannot run these, UNAVAILABLE where it
        died, DEADLINE_EXCEEDED where it hung. After the last two it is gone, and was told to be.
        """
        ...

    async def close(self) -> None:
        """End it; a run under way is refused with UNAVAILABLE."""
        ...


Ended = Callable[[Engine, str], None]
"""Told once when a started engine ended by itself: how, in a sentence."""

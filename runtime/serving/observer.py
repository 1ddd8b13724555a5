"""Who is told what happens to the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in microseconds.

    decode is the copy to the engine, compute the engine's run alone, encode the copy back.
    batch_size is how many requests ran together.
    """

    queue_us: int
    decode_us: int
    compute_us: int
    encode_us: int
    batch_size: int


class Observer(Protocol):
    """Counts. The inference service tells of requests, a model of its batches and restarts."""

    def request(
        self, model: str, target: str, status: str, timings: Timings | None, total_us: int
    ) -> None:
        """A request was answered with a gRPC status ('OK'); timings only where the engine ran."""
        ...

    def batch(self, model: str, size: int) -> None:
        """An engine ran `size` requests together."""
        ...

    def restart(self, model: str, reason: str) -> None:
        """An engine ended by itself and another is started."""
        ...


class Nobody:
    """The observer that does not look."""

    def request(
        self, model: str, target: str, status: str, timings: Timings | None, total_us: int
    ) -> None:
        """See Observer."""

    def batch(self, model: str, size: int) -> None:
        """See Observer."""

    def restart(self, model: str, reason: str) -> None:
        """See Observer."""


NOBODY = Nobody()

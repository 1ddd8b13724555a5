"""The way of a search: the networks it went through, and where it measured that it had arrived."""

from __future__ import annotations

from dataclasses import dataclass

from converters.slim.candidates import Score
from converters.slim.families.base import Subnet


@dataclass(frozen=True)
class Point:
    """A network on the way: what led there, its predicted latency, its score, how many were tried.

    action is None for the whole network. tried counts the candidates that were scored to find it.
    """

    subnet: Subnet
    ms: float
    score: Score
    action: str | None = None
    tried: int = 0


@dataclass(frozen=True)
class Landing:
    """One end that was measured: the predicted latency aimed at, predicted and measured, in ms."""

    aim: float
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted


@dataclass(frozen=True)
class Found:
    """The way from the whole network to the end; evaluated counts all networks that were scored."""

    path: tuple[Point, ...]
    landings: tuple[Landing, ...]
    evaluated: int

    @property
    def end(self) -> Point:
        return self.path[-1]

"""What a latency table holds, as values. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from converters.slim.families.base import Part


@dataclass(frozen=True)
class Entry:
    """The latency of a part. `spread_ms` is how far the two halves of its measurement were apart.

    samples are the runs of the engine behind it, `times` how often the longer of the two probes has
    the part more than the shorter; 0 where a whole network was timed. date is ISO 8601, UTC.
    """

    part: Part
    ms: float
    spread_ms: float
    samples: int
    times: int
    date: str


@dataclass(frozen=True)
class NetworkEntry:
    """A whole network that was measured to fit the table; parts_ms is the sum of its parts.

    shape is the network's shape as JSON, its keys sorted.
    """

    family: str
    shape: str
    side: int
    classes: int
    measured_ms: float
    parts_ms: float
    samples: int
    date: str


def told(part: Part) -> str:
    """A part in an error or a progress line: 'efficientformer pool_block 48 at 16 px'."""
    dims = " x ".join(map(str, part.dims))
    return f"{part.family} {part.kind} {dims} at {part.side} px"

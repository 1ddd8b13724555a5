"""What an evaluation found. Plain data, ready for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Z_95 = 1.959963984540054
"""Of a standard normal, 95 percent lie within this distance of 0."""


@dataclass(frozen=True)
class Share:
    """`correct` of `of` pictures, and the interval that holds the true share with 95 percent.

    fraction, low and high are in [0, 1].
    """

    correct: int
    of: int
    fraction: float
    low: float
    high: float


def share(correct: int, of: int) -> Share:
    """The share and its score interval (Wilson 1927). of is 1 or more.

    Unlike the normal approximation it never leaves [0, 1] and has a width where all are right.
    """
    fraction = correct / of
    scale = 1 + Z_95**2 / of
    centre = (fraction + Z_95**2 / (2 * of)) / scale
    half = Z_95 / scale * math.sqrt(fraction * (1 - fraction) / of + Z_95**2 / (4 * of**2))
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == of else centre + half
    return Share(correct, of, fraction, low, high)


@dataclass(frozen=True)
class Result:
    """One evaluated thing: torch, or the artefact of a target.

    top1 and top5 are there where status is "evaluated", top5 only with more than 5 classes;
    otherwise reason says why they are not.
    """

    name: str
    status: Literal["evaluated", "not_executed", "failed"]
    precision: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    top1: Share | None = None
    top5: Share | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """On how many pictures two evaluated things name the same class, right or wrong."""

    first: str
    second: str
    same: int
    of: int


@dataclass(frozen=True)
class Evaluation:
    """The whole answer. pictures of `available` in the split were looked at."""

    subject: str
    data: str
    split: str
    pictures: int
    available: int
    classes: int
    labels: str
    trained: bool | None
    results: list[Result]
    agreements: list[Agreement]
    notes: list[str]

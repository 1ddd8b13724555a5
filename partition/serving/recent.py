"""How long a worker took lately."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

KEPT = 128
ENOUGH = 20


class RecentTimes:
    """The last KEPT times, in seconds, with their percentiles at hand."""

    def __init__(self) -> None:
        self._in_order_of_time: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """One more; the oldest goes."""
        if len(self._sorted) == KEPT:
            oldest = self._in_order_of_time.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._in_order_of_time.append(seconds)
        insort(self._sorted, seconds)

    def percentile(self, share: float) -> float | None:
        """The time that `share` (0.95) of them are not above; None where there are too few."""
        if len(self._sorted) < ENOUGH:
            return None
        return self._sorted[min(int(share * len(self._sorted)), len(self._sorted) - 1)]

    @property
    def median(self) -> float | None:
        """Half of them took longer; None before the first."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else None

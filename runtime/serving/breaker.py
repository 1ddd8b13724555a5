"""When to stop starting again what keeps dying."""

from __future__ import annotations

from collections import deque
from time import monotonic


class Breaker:
    """Opens at `deaths` deaths within `seconds`."""

    def __init__(self, deaths: int = 5, seconds: float = 120.0) -> None:
        self.deaths, self.seconds = deaths, seconds
        self._times: deque[float] = deque(maxlen=deaths)

    def count(self) -> bool:
        """Count a death of this moment; whether there were too many."""
        self._times.append(monotonic())
        full = len(self._times) == self.deaths
        return full and self._times[-1] - self._times[0] <= self.seconds

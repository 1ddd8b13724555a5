"""When to stop starting again what keeps dying."""

from __future__ import annotations

from collections import deque
from time import monotonic


class Breaker:
    """Opens at `deaths` deaths within `seconds`, or with no good run between, however long."""

    def __init__(self, deaths: int = 5, seconds: float = 120.0) -> None:
        self.deaths, self.seconds = deaths, seconds
        self.since_run = 0
        self._times: deque[float] = deque(maxlen=deaths)

    def ran(self) -> None:
        """A run came to its end, so the deaths from here on are others."""
        self.since_run = 0

    def count(self) -> str:
        """Count a death of this moment; how often and how fast, empty where that is not too much.

        Hangs are counted by the runs: as long as one takes, few fit into the seconds.
        """
        self._times.append(monotonic())
        self.since_run += 1
        full = len(self._times) == self.deaths
        if full and self._times[-1] - self._times[0] <= self.seconds:
            return f"{self.deaths} times within {self.seconds:.0f} s"
        if self.since_run >= self.deaths:
            return f"{self.since_run} times without an answer between"
        return ""

    def pause_s(self) -> float:
        """How long to wait before the next start: the first after a good run is at once."""
        return 0.0 if self.since_run < 2 else min(2.0, 0.1 * 2**self.since_run)

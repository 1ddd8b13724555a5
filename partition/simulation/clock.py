"""Events in the order of their time, and machines that do one piece of work after another."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

Then = Callable[[], None]


class Event:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("then",)

    def __init__(self, then: Then) -> None:
        self.then: Then | None = then

    def cancel(self) -> None:
        """It will not happen."""
        self.then = None


class Clock:
    """now is in seconds. Events of one time happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._number = count()

    def after(self, seconds: float, then: Then) -> Event:
        """Do this in so many seconds."""
        event = Event(then)
        heapq.heappush(self._heap, (self.now + seconds, next(self._number), event))
        return event

    def run(self, done: Callable[[], bool]) -> None:
        """Let time pass until `done`, or until nothing is left to happen."""
        while self._heap and not done():
            at, _, event = heapq.heappop(self._heap)
            if event.then is not None:
                self.now = at
                event.then()


class Work:
    """A piece of work in a queue or under way; queued work that is dropped is never begun."""

    __slots__ = ("dropped", "finished", "seconds")

    def __init__(self, seconds: float, finished: Then) -> None:
        self.seconds, self.finished = seconds, finished
        self.dropped = False


class Machine:
    """Works at `cores` things at a time, first come first served.

    `host` is the machine whose cores it needs for that, where several share them.
    """

    def __init__(self, clock: Clock, cores: int, host: Machine | None = None) -> None:
        self._clock, self._free, self._host = clock, cores, host
        self._queue: deque[Work] = deque()

    def do(self, seconds: float, finished: Then) -> Work:
        """Queue work that takes so long by itself."""
        work = Work(seconds, finished)
        self._queue.append(work)
        self._pump()
        return work

    def _pump(self) -> None:
        while self._free and self._queue:
            work = self._queue.popleft()
            if not work.dropped:
                self._free -= 1
                self._begin(work)

    def _begin(self, work: Work) -> None:
        def end() -> None:
            self._free += 1
            work.finished()
            self._pump()

        if self._host is not None:
            self._host.do(work.seconds, end)
        else:
            self._clock.after(work.seconds, end)

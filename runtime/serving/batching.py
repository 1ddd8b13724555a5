"""The bounded queue in front of a model's engines, and which of its requests run together."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any

from runtime.sessions.base import Array
from runtime.wire.refused import exhausted


@dataclass(eq=False)
class Waiting:
    """One request in the queue. Times are nanoseconds of the monotonic clock.

    alone: it is to run with no other.
    """

    x: Array
    rows: int
    answer: asyncio.Future[Any]
    deadline_ns: int | None = None
    alone: bool = False
    since_ns: int = field(default_factory=monotonic_ns)

    def expired(self) -> bool:
        """Whether its caller has stopped waiting."""
        return self.deadline_ns is not None and monotonic_ns() >= self.deadline_ns


class BatchQueue:
    """First in, first out; at most `limit` requests, batches of at most `most` rows.

    A batch leaves when it is full or `wait_ms` after its first request came. A request that comes
    alone after another that ran alone leaves at once: waiting would only cost it time.
    """

    def __init__(self, limit: int, most: int = 1, wait_ms: float = 0.0) -> None:
        self.limit, self.most, self.wait_ms = limit, most, wait_ms
        self._waiting: deque[Waiting] = deque()
        self._crowded = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Waiting) -> None:
        """Add a request at the end. Raises Refused, RESOURCE_EXHAUSTED, where the queue is full."""
        if len(self._waiting) >= self.limit:
            raise exhausted(
                f"{self.limit} requests wait already; send fewer at a time or try again later"
            )
        self._waiting.append(request)

    def put_back(self, requests: list[Waiting]) -> None:
        """Return requests to the front, in their order, whatever the limit."""
        self._waiting.extendleft(reversed(requests))

    def leave(self, request: Waiting) -> None:
        """Take a request out that nobody waits for any more, if it is still there."""
        try:
            self._waiting.remove(request)
        except ValueError:
            return

    def take(self) -> list[Waiting]:
        """The batch that is to run now, empty where none is. An engine must be free."""
        batch, rows = self._next()
        if not batch or (self._should_wait(len(batch), rows) and self.ready_in_s() > 0):
            return []
        for _ in batch:
            self._waiting.popleft()
        self._crowded = len(batch) > 1 or bool(self._waiting)
        return batch

    def ready_in_s(self) -> float:
        """Seconds until the first request has waited long enough; 0 where it has, or none is."""
        if not self._waiting:
            return 0.0
        return max(self._waiting[0].since_ns + self.wait_ms * 1e6 - monotonic_ns(), 0) / 1e9

    def clear(self) -> list[Waiting]:
        """Take out everything."""
        left = list(self._waiting)
        self._waiting.clear()
        return left

    def _next(self) -> tuple[list[Waiting], int]:
        """The requests at the front that fit into one run, and their rows."""
        batch: list[Waiting] = []
        rows = 0
        for request in self._waiting:
            if batch and (rows + request.rows > self.most or request.alone or batch[0].alone):
                break
            batch.append(request)
            rows += request.rows
        return batch, rows

    def _should_wait(self, requests: int, rows: int) -> bool:
        """Whether others may come that could run with these."""
        full = rows >= self.most or requests < len(self._waiting)
        return not full and not self._waiting[0].alone and (requests > 1 or self._crowded)

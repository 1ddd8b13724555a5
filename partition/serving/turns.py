"""Requests wait for their turn, and those that wait together are asked together.

Where workers take one picture at a time, many requests are under way at once and queue at the
agents. Where they take several, few are, so that what comes meanwhile becomes one call. What
workers are to sense has turns of one row: each request is for what is there at its own time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns

import numpy as np

from partition.serving.fuse import Fused
from partition.serving.request_bytes import InputName
from runtime.sessions.base import Array
from runtime.wire.refused import exhausted

ONE_BY_ONE = (
    32  # under way at once; half of what an agent queues, for there may be two coordinators
)
TOGETHER = 2

Run = Callable[[Array | InputName, float | None], Awaitable[Fused]]


@dataclass(frozen=True)
class Turn:
    """What became of a request: its rows of the answer of `together` requests."""

    fused: Fused
    first: int
    rows: int
    queue_us: int
    together: int


@dataclass(eq=False)
class _Waiting:
    x: Array | InputName
    deadline_s: float | None
    turn: asyncio.Future[Turn]
    since_ns: int = field(default_factory=perf_counter_ns)


class Turns:
    """First in, first out. `most` is how many rows one run takes."""

    def __init__(self, run: Run, most: int, patience_s: float, limit: int = 256) -> None:
        """limit is how many requests may wait; those in more of a hurry than patience_s run alone.

        A run of several ends with the earliest of their deadlines, which must not be so early that
        workers are left out for the others.
        """
        self._run, self._most, self._patience_s, self._limit = run, most, patience_s, limit
        self._free = TOGETHER if most > 1 else ONE_BY_ONE
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, x: Array | InputName, timeout_s: float | None) -> Turn:
        """Wait and run. Raises Refused, RESOURCE_EXHAUSTED, where too many wait already."""
        if len(self._waiting) >= self._limit:
            raise exhausted(
                f"{self._limit} requests wait already; send fewer at a time or try again later"
            )
        if self._free and not self._waiting:  # nobody to wait for, nobody to go with
            self._free -= 1
            try:
                return Turn(await self._run(x, timeout_s), 0, len(x), 0, 1)
            finally:
                self._free += 1
                self._pump()
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        waiting = _Waiting(x, deadline_s, loop.create_future())
        self._waiting.append(waiting)
        self._pump()
        return await waiting.turn

    async def close(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pump(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            task = asyncio.create_task(self._carry_out(batch))
            self._tasks.add(task)
            for waiting in batch:
                waiting.turn.add_done_callback(partial(_end_if_unwanted, batch, task))
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free += 1
        self._pump()

    def _next(self) -> list[_Waiting]:
        """The requests of the next run; those that nobody waits for any more are dropped."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            first = self._waiting[0]
            if first.turn.done():
                self._waiting.popleft()
                continue
            if batch and (
                rows + len(first.x) > self._most or self._hurried(first) or self._hurried(batch[0])
            ):
                break
            batch.append(self._waiting.popleft())
            rows += len(first.x)
            if self._most == 1:
                break
        return batch

    def _hurried(self, waiting: _Waiting) -> bool:
        if waiting.deadline_s is None:
            return False
        return waiting.deadline_s - asyncio.get_running_loop().time() < self._patience_s

    async def _carry_out(self, batch: list[_Waiting]) -> None:
        begun = perf_counter_ns()
        x = batch[0].x if len(batch) == 1 else _joined(batch)
        deadlines = [w.deadline_s for w in batch if w.deadline_s is not None]
        now = asyncio.get_running_loop().time()
        try:
            fused = await self._run(x, min(deadlines) - now if deadlines else None)
        except Exception as error:
            for waiting in batch:
                if not waiting.turn.done():
                    waiting.turn.set_exception(error)
            return
        first = 0
        for waiting in batch:
            rows = len(waiting.x)
            if not waiting.turn.done():
                queue_us = (begun - waiting.since_ns) // 1000
                waiting.turn.set_result(Turn(fused, first, rows, queue_us, len(batch)))
            first += rows


def _joined(batch: list[_Waiting]) -> Array:
    """The pictures of several requests, rows one behind the other."""
    return np.concatenate([w.x for w in batch if not isinstance(w.x, InputName)])


def _end_if_unwanted(
    batch: list[_Waiting], task: asyncio.Task[None], _: asyncio.Future[Turn]
) -> None:
    """Nobody is to compute for callers that have all gone."""
    if all(waiting.turn.cancelled() for waiting in batch):
        task.cancel()

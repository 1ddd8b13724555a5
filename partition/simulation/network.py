"""Bytes on their way over links that are shared fairly, as a fluid.

Every transfer goes over one direction of some links. All of them run at once, each as fast as its
max-min fair share: what a transfer cannot use, because another of its links is narrower, the others
get. That is what many TCP connections through the same bottleneck come to on average; the
order of single packets, loss and TCP's own start are not in it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import count

from partition.simulation.clock import Clock, Event, Then
from partition.simulation.fleet import Link

BITS = 8
NOTHING = 0.1  # of a byte: what rounding may leave of a transfer


class Pipe:
    """One direction of a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.busy = 0  # transfers under way
        self._tokens, self._since = float(link.burst_bytes), 0.0

    def take(self, now: float, size: float) -> None:
        """These bytes pass at once."""
        self._tokens, self._since = self.free(now) - size, now

    def free(self, now: float) -> float:
        """Bytes that would pass at once: the bucket fills at the link's rate while it is idle."""
        if self.link.rate is None:
            return math.inf
        if self.busy:
            return 0.0
        filled = self._tokens + (now - self._since) * self.link.rate / BITS
        return min(float(self.link.burst_bytes), filled)

    def idle(self, now: float) -> None:
        """The last transfer has ended."""
        self._tokens, self._since = 0.0, now


class Transfer:
    """Bytes under way. A cancelled one is not heard of again."""

    __slots__ = ("cancelled", "delay_s", "event", "group", "then")

    def __init__(self, delay_s: float, then: Then) -> None:
        self.delay_s, self.then = delay_s, then
        self.cancelled = False
        self.group: _Group | None = None
        self.event: Event | None = None


class _Group:
    """The transfers over the same pipes: they run alike, so that only what each had passed counts.

    `passed` is how many bytes one of them, there from the beginning, would have sent.
    """

    def __init__(self, pipes: tuple[Pipe, ...]) -> None:
        self.pipes = pipes
        self.rate = 0.0  # bytes a second of each transfer
        self.passed = 0.0
        self.heap: list[tuple[float, int, Transfer]] = []
        self.members = 0


class Network:
    """All transfers of a cluster."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._number = count()
        self._at = 0.0
        self._next: Event | None = None

    def send(self, size: float, pipes: Sequence[Pipe], then: Then) -> Transfer:
        """Send bytes over pipes that follow each other; `then` happens when the last has come."""
        transfer = Transfer(sum(pipe.link.delay_s for pipe in pipes), then)
        limited = tuple(pipe for pipe in pipes if pipe.link.rate is not None)
        if not limited:
            self._arrive(transfer)
            return transfer
        now = self._clock.now
        charged = max(pipe.link.charged(size) for pipe in limited)
        free = min(charged, *(pipe.free(now) for pipe in limited))
        if free:
            for pipe in limited:
                pipe.take(now, free)
        if charged <= free:
            self._arrive(transfer)
            return transfer
        self._pass()
        key = tuple(id(pipe) for pipe in limited)
        group = self._groups.setdefault(key, _Group(limited))
        transfer.group = group
        entry = group.passed + charged - free, next(self._number), transfer
        heapq.heappush(group.heap, entry)
        self._count(group, 1)
        self._plan()
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop it where it is under way."""
        transfer.cancelled = True
        if transfer.event is not None:
            transfer.event.cancel()
        if transfer.group is not None:
            self._pass()
            self._count(transfer.group, -1)
            transfer.group = None
            self._plan()

    def _arrive(self, transfer: Transfer) -> None:
        transfer.event = self._clock.after(transfer.delay_s, transfer.then)

    def _count(self, group: _Group, change: int) -> None:
        group.members += change
        for pipe in group.pipes:
            pipe.busy += change
            if not pipe.busy:
                pipe.idle(self._clock.now)

    def _pass(self) -> None:
        """Bring all groups to the present."""
        seconds, self._at = self._clock.now - self._at, self._clock.now
        for group in self._groups.values():
            group.passed += seconds * group.rate

    def _plan(self) -> None:
        """Share anew, and wake up when the first transfer is through."""
        for key in [key for key, group in self._groups.items() if not group.members]:
            del self._groups[key]
        self._share()
        soonest = math.inf
        for group in self._groups.values():
            while group.heap[0][2].cancelled:
                heapq.heappop(group.heap)
            soonest = min(soonest, (group.heap[0][0] - group.passed) / group.rate)
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if soonest < math.inf:
            self._next = self._clock.after(max(0.0, soonest), self._ended)

    def _ended(self) -> None:
        self._next = None
        self._pass()
        over: list[Transfer] = []
        for group in self._groups.values():
            while group.heap and group.heap[0][0] - group.passed < NOTHING:
                transfer = heapq.heappop(group.heap)[2]
                if not transfer.cancelled:
                    transfer.group = None
                    self._count(group, -1)
                    over.append(transfer)
        self._plan()
        for transfer in over:
            self._arrive(transfer)

    def _share(self) -> None:
        """Max-min fair rates by progressive filling: the narrowest pipe first."""
        left: dict[Pipe, float] = {}
        users: dict[Pipe, int] = {}
        for group in self._groups.values():
            for pipe in group.pipes:
                left[pipe] = (pipe.link.rate or math.inf) / BITS
                users[pipe] = users.get(pipe, 0) + group.members
        open_ = list(self._groups.values())
        while open_:
            narrowest = min(users, key=lambda pipe: left[pipe] / users[pipe])
            rate = left[narrowest] / users[narrowest]
            still = []
            for group in open_:
                if narrowest not in group.pipes:
                    still.append(group)
                    continue
                group.rate = rate
                for pipe in group.pipes:
                    left[pipe] = max(0.0, left[pipe] - rate * group.members)
                    users[pipe] -= group.members
            open_ = still
            for pipe in [pipe for pipe, used in users.items() if not used]:
                del users[pipe]

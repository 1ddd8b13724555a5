"""A fleet at work: what happens to each request, event by event, as in partition.serving."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from partition.serving.recent import RecentTimes
from partition.simulation.clock import Clock, Event, Machine, Work
from partition.simulation.fleet import Device, Fleet, Submodel, samples
from partition.simulation.network import Network, Pipe, Transfer

# As partition.serving.fanout has them.
HEDGE_AFTER, FIRST_HEDGE_S, LEAST_HEDGE_S = 0.95, 0.1, 0.002


@dataclass
class Reply:
    """When a call to a worker began and what became of its time, in seconds."""

    submodel: str
    place: str
    begun: float
    elapsed: float = 0.0
    worker: float = 0.0
    compute: float = 0.0


@dataclass
class Request:
    """One request: by the clock, when it came from one stage to the next, and what came back."""

    begun: float
    arrived: float = 0.0
    taken: float = 0.0
    asked: float = 0.0
    gathered: float = 0.0
    answered: float = 0.0
    ended: float = 0.0
    refused: bool = False
    replies: dict[str, Reply] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def straggler(self) -> Reply:
        """The worker whose answer took longest."""
        return max(self.replies.values(), key=lambda reply: reply.elapsed)


class Site:
    """A device, both directions of its link, and how long its workers took lately."""

    def __init__(self, device: Device, clock: Clock, host: Machine | None) -> None:
        self.device = device
        self.down, self.up = Pipe(device.link), Pipe(device.link)
        self.machine = Machine(clock, device.cores, host)
        self.times = {name: RecentTimes() for name in device.compute_s}
        self.samples = {name: samples(times) for name, times in device.compute_s.items()}


class Cluster:
    """A fleet with nothing under way yet. `lost` devices are not asked, for it is known."""

    def __init__(self, fleet: Fleet, lost: Collection[str], seed: int) -> None:
        self.fleet, self.clock, self.random = fleet, Clock(), np.random.default_rng(seed)
        self.missing = fleet.missing(lost)
        self.network = Network(self.clock)
        host = Machine(self.clock, fleet.shared_cores) if fleet.shared_cores else None
        self.hub = Machine(self.clock, 1, host)
        self.hub_in, self.hub_out = Pipe(fleet.hub.link), Pipe(fleet.hub.link)
        self._caller = Machine(self.clock, 1 << 30, host)
        caller = fleet.caller.link
        self._to_hub = (Pipe(caller), self.hub_in) if caller else ()
        self._from_hub = (self.hub_out, Pipe(caller)) if caller else ()
        sites = {d.name: Site(d, self.clock, host) for d in fleet.devices if d.name not in lost}
        self._places = [
            (submodel, [sites[place] for place in submodel.places if place in sites])
            for submodel in fleet.submodels
        ]
        self._under_way = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def request(self, over: Callable[[Request], None]) -> None:
        """A request begins now; `over` is told when its answer is with the caller."""
        request, caller, hub = Request(self.clock.now), self.fleet.caller, self.fleet.hub

        def call() -> None:
            self.network.send(caller.request_bytes, self._to_hub, arrive)

        def arrive() -> None:
            self.hub.do(hub.accept_s, accept)

        def accept() -> None:
            request.arrived = self.clock.now
            self.hub.do(hub.decode_s, self._decoded(request, answered))

        def answered() -> None:
            request.answered = self.clock.now
            self.network.send(caller.answer_bytes, self._from_hub, end)

        def end() -> None:
            request.ended = self.clock.now
            over(request)

        self._caller.do(caller.call_s, call)

    def _decoded(self, request: Request, answered: Callable[[], None]) -> Callable[[], None]:
        """What the coordinator does with a request: its turn, all sub-models, the fusion."""
        hub = self.fleet.hub

        def enter() -> None:
            request.taken = self.clock.now
            if self._under_way < hub.under_way and not self._waiting:
                take()
            elif len(self._waiting) < hub.waiting:
                self._waiting.append(take)
            else:
                request.refused = True
                answered()

        def take() -> None:
            self._under_way += 1
            request.asked = self.clock.now
            left = {submodel.name for submodel, _ in self._places}

            def one_is_through(name: str) -> None:
                left.remove(name)
                if not left:
                    gathered()

            for submodel, sites in self._places:
                _Asking(self, request, submodel, sites, partial(one_is_through, submodel.name))

        def gathered() -> None:
            request.gathered = self.clock.now
            request.refused = not request.replies
            self.hub.do(hub.fuse_s, fused)

        def fused() -> None:
            self._under_way -= 1
            answered()
            if self._waiting and self._under_way < hub.under_way:
                self._waiting.popleft()()

        return enter

    def ask(self, submodel: Submodel, site: Site, done: Callable[[Reply], None]) -> _Call:
        """One call to one worker begins now."""
        return _Call(self, submodel, site, done)


class _Call:
    """One call to one worker. Cancelled it stops where it is; an engine ends what it has begun."""

    def __init__(
        self, cluster: Cluster, submodel: Submodel, site: Site, done: Callable[[Reply], None]
    ) -> None:
        self.reply = Reply(submodel.name, site.device.name, cluster.clock.now)
        self._cluster, self._submodel, self._site, self._done = cluster, submodel, site, done
        self._work: Work | None = None
        self._transfer: Transfer | None = None
        self._over = False
        self._work = cluster.hub.do(cluster.fleet.hub.send_s, self._sent)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._over = True
        if self._work is not None:
            self._work.dropped = True
        if self._transfer is not None:
            self._cluster.network.cancel(self._transfer)

    def _sent(self) -> None:
        cluster, site = self._cluster, self._site
        if self._over:
            return
        size = self._submodel.request_bytes
        pipes = (cluster.hub_out, site.down)
        self._work = None
        self._transfer = cluster.network.send(size, pipes, self._came)

    def _came(self) -> None:
        cluster, site, device = self._cluster, self._site, self._site.device
        self._transfer = None
        times = site.samples[self._submodel.name]
        self.reply.compute = times[cluster.random.integers(len(times))]
        self._at_device = cluster.clock.now
        seconds = device.transport_s + device.call_s + self.reply.compute
        self._work = site.machine.do(seconds, self._computed)

    def _computed(self) -> None:
        if self._over:
            return
        cluster, site = self._cluster, self._site
        self.reply.worker = cluster.clock.now - self._at_device - site.device.transport_s
        self._work = None
        pipes = (site.up, cluster.hub_in)
        self._transfer = cluster.network.send(self._submodel.answer_bytes, pipes, self._back)

    def _back(self) -> None:
        self._transfer = None
        self._work = self._cluster.hub.do(self._cluster.fleet.hub.receive_s, self._received)

    def _received(self) -> None:
        if self._over:
            return
        self._over, self._work = True, None
        self.reply.elapsed = self._cluster.clock.now - self.reply.begun
        self._site.times[self._submodel.name].add(self.reply.elapsed)
        self._done(self.reply)


class _Asking:
    """One sub-model of one request: its worker, then a replica where that takes long."""

    def __init__(
        self,
        cluster: Cluster,
        request: Request,
        submodel: Submodel,
        sites: list[Site],
        through: Callable[[], None],
    ) -> None:
        self._cluster, self._request, self._submodel = cluster, request, submodel
        self._left, self._through = deque(sites), through
        self._calls: dict[int, tuple[_Call, Site]] = {}
        self._hedge: Event | None = None
        self._end: Event | None = None
        if not sites:
            request.missing.append(submodel.name)
            cluster.clock.after(0.0, through)
            return
        self._end = cluster.clock.after(cluster.fleet.hub.patience_s, self._in_vain)
        self._next()

    def _next(self) -> None:
        site = self._left.popleft()
        call = self._cluster.ask(self._submodel, site, self._answered)
        self._calls[id(call)] = call, site
        if self._left:
            usual = site.times[self._submodel.name].percentile(HEDGE_AFTER)
            patience = FIRST_HEDGE_S if usual is None else max(usual, LEAST_HEDGE_S)
            self._hedge = self._cluster.clock.after(patience, self._next)

    def _answered(self, reply: Reply) -> None:
        self._request.replies[reply.submodel] = reply
        for call, site in self._calls.values():
            if call.reply is not reply:  # it took at least so long
                took = self._cluster.clock.now - call.reply.begun
                site.times[self._submodel.name].add(took)
        self._close()

    def _in_vain(self) -> None:
        self._request.missing.append(self._submodel.name)
        self._close()

    def _close(self) -> None:
        for event in (self._hedge, self._end):
            if event is not None:
                event.cancel()
        for call, _ in self._calls.values():
            call.cancel()
        self._through()

"""Real clusters over shaped links for edvit_simulation.py, and the parts of the prediction measured on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from loopback_agent import ROOT

sys.path.append(str(ROOT / "tests"))
from coordinator_tools import DEVICES, WIDTHS, Coordinator, TinyPlan, write_plan
from netns_tools import bucket_of, network, why_not
from shaped_cluster import HUB, SCENE, behind_proxies, on_hosts
from timed_calls import timed_calls

from partition.simulate import Caller, Device, Fleet, Hub, Link, Submodel

__all__ = [
    "BROADCAST",
    "LOCAL",
    "WIDTHS",
    "Parts",
    "Served",
    "link_of",
    "measure_parts",
    "on_namespaces",
    "on_proxies",
    "why_not",
]

BROADCAST, LOCAL = "broadcast", "local-input"
PATIENCE_S = 60.0  # of the coordinator that tests/shaped_cluster.py starts
FRAME_BYTES = 14 + 20 + 32  # of Ethernet, IPv4 and TCP with its timestamps, for each segment
IDLE_S = 3.0


@dataclass(frozen=True)
class Served:
    """A plan of `count` sub-models on as many devices, served over links that can be shaped.

    shape(rate, hub rate) is in bit/s. calls(address, **flags) runs tests/timed_calls.py where the
    coordinator is.
    """

    count: int
    side: int
    coordinator: Coordinator
    agents: list[str]
    shape: Callable[[int | None, int | None], None]
    calls: Callable[..., dict[str, Any]]
    passed: Callable[[], tuple[int, int]] | None = None

    def ask(self, mode: str, **flags: object) -> dict[str, Any]:
        """Calls of the coordinator."""
        return self.calls(self.coordinator.address, **self._how(mode), **flags)

    def ask_agent(self, index: int, mode: str, **flags: object) -> dict[str, Any]:
        """Calls of one agent, while no other has anything to do."""
        how = self._how(mode) | {"model": f"sub{index}"}
        return self.calls(self.agents[index], **how, **flags)

    def _how(self, mode: str) -> dict[str, object]:
        return {"side": self.side, "ref": SCENE if mode == LOCAL else ""}


def plan_of(work: Path, count: int, side: int) -> TinyPlan:
    """A plan with so many sub-models that take pictures of this side, 3 channels of float32."""
    work.mkdir(parents=True)
    return write_plan(work / "plan", side=side, layouts=("NCHW",) * count)


@contextmanager
def on_namespaces(work: Path, count: int, side: int) -> Iterator[Served]:
    """Each process on a host of its own, shaped by tbf; the caller beside the coordinator."""
    plan, names = plan_of(work, count, side), DEVICES[:count]
    with network([HUB, *names]) as net, on_hosts(net, plan, work, count, side) as coordinator:

        def shape(rate: int | None, hub_rate: int | None) -> None:
            for name in names:
                net.shape(name, rate)
            net.shape(HUB, hub_rate)

        def calls(address: str, **flags: object) -> dict[str, Any]:
            with net[HUB].inside():
                return timed_calls(address, **flags)

        agents = [f"{net[name].address}:8001" for name in names]
        yield Served(count, side, coordinator, agents, shape, calls)


@contextmanager
def on_proxies(work: Path, count: int, side: int) -> Iterator[Served]:
    """Everything on loopback, a shaping proxy before each agent."""
    plan = plan_of(work, count, side)
    with behind_proxies(plan, work, count, side) as (coordinator, cables):
        yield Served(
            count, side, coordinator, cables.addresses, cables.shape, timed_calls, cables.passed
        )


def link_of(rate: int | None, namespaces: bool) -> Link:
    """What is said to the simulation of a link that was shaped to `rate`."""
    if rate is None or not namespaces:
        return Link(rate)
    return Link(rate, burst_bytes=bucket_of(rate), header_bytes=FRAME_BYTES)


@dataclass(frozen=True)
class Parts:
    """One mode's measured parts. Seconds, and bytes of a call on the wire; compute_s by sub-model."""

    request_bytes: float
    answer_bytes: float
    caller_bytes: tuple[int, int]
    compute_s: list[list[float]]
    call_s: float
    transport_s: float
    worker_s: float
    accept_s: float
    decode_s: float
    fuse_s: float
    caller_s: float

    def fleet(self, count: int, link: Link, hub_link: Link, cores: int | None) -> Fleet:
        """`count` of the devices; `worker_s` is the coordinator's own for each, half each way."""
        names = DEVICES[:count]
        half = self.worker_s / 2
        return Fleet(
            devices=tuple(
                Device(name, {f"sub{i}": self.compute_s[i]}, link, self.call_s, self.transport_s)
                for i, name in enumerate(names)
            ),
            submodels=tuple(
                Submodel(f"sub{i}", (name,), self.request_bytes, self.answer_bytes)
                for i, name in enumerate(names)
            ),
            hub=Hub(
                hub_link,
                self.accept_s,
                self.decode_s,
                half,
                half,
                self.fuse_s,
                patience_s=PATIENCE_S,
            ),
            caller=Caller(*self.caller_bytes, call_s=self.caller_s),
            shared_cores=cores,
        )


def measure_parts(
    work: Path, side: int, most: int, calls: int, serve: Callable[..., Any]
) -> dict[str, Parts]:
    """By mode. `serve` is on_namespaces or on_proxies; nothing is shaped."""
    with on_proxies(work / "bytes", 1, side) as served:
        wire = {mode: _wire_bytes(served, mode, calls) for mode in (BROADCAST, LOCAL)}
    with serve(work / "one", 1, side) as served:
        one = {mode: _told(served, mode, calls) for mode in wire}
    with serve(work / "most", most, side) as served:
        many = {mode: _told(served, mode, calls) for mode in wire}
        agents = {
            mode: [
                served.ask_agent(i, mode, calls=calls, warm=calls // 4)["calls"]
                for i in range(most)
            ]
            for mode in wire
        }
    found = {}
    for mode, (request_bytes, answer_bytes) in wire.items():
        worker_s = max(0.0, (many[mode]["cpu_s"] - one[mode]["cpu_s"]) / (most - 1))
        told = [call for calls_ in agents[mode] for call in calls_]
        decode_s, fuse_s = one[mode]["decode_us"] / 1e6, one[mode]["fuse_us"] / 1e6
        outside_s = one[mode]["outside_s"]
        accept_s = min(outside_s, max(0.0, one[mode]["cpu_s"] - worker_s - decode_s - fuse_s))
        found[mode] = Parts(
            request_bytes=request_bytes,
            answer_bytes=answer_bytes,
            caller_bytes=one[mode]["bytes"],
            compute_s=[[call["compute_us"] / 1e6 for call in calls_] for calls_ in agents[mode]],
            call_s=median(call["total_us"] - call["compute_us"] for call in told) / 1e6,
            transport_s=max(0.0, one[mode]["network_us"] / 1e6 - worker_s),
            worker_s=worker_s,
            accept_s=accept_s,
            decode_s=decode_s,
            fuse_s=fuse_s,
            caller_s=outside_s - accept_s,
        )
    return found


def _told(served: Served, mode: str, calls: int) -> dict[str, Any]:
    """Medians of what the coordinator tells, and the CPU time of its process for a request."""
    process = psutil.Process(served.coordinator.process.pid)
    served.ask(mode, calls=10)
    before = sum(process.cpu_times()[:2])
    found = served.ask(mode, calls=calls, warm=0)
    spent = sum(process.cpu_times()[:2]) - before
    told = found["calls"]
    names = ("decode_us", "network_us", "fuse_us")
    medians: dict[str, Any] = {name: median(call[name] for call in told) for name in names}
    own = median(call["seconds"] - call["total_us"] / 1e6 for call in told)
    sizes = found["request_bytes"], found["answer_bytes"]
    return medians | {"outside_s": own, "cpu_s": spent / found["asked"], "bytes": sizes}


def _wire_bytes(served: Served, mode: str, calls: int) -> tuple[float, float]:
    """Bytes to a worker and back for one call, less what passes without any."""
    assert served.passed is not None
    begun, start = time.monotonic(), served.passed()
    time.sleep(IDLE_S)
    idle = [
        (b - a) / (time.monotonic() - begun) for a, b in zip(start, served.passed(), strict=True)
    ]
    begun, start = time.monotonic(), served.passed()
    asked = served.ask(mode, calls=calls, warm=0)["asked"]
    spent = time.monotonic() - begun
    both = zip(start, served.passed(), idle, strict=True)
    sent, returned = ((b - a - spent * rate) / asked for a, b, rate in both)
    return sent, returned

"""A tiny plan that is served by real agents and a coordinator, and known as if it was launched."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from agent_tools import Agent, eventually
from coordinator_tools import Coordinator, TinyPlan, addresses_of, agents_of, coordinating
from PIL import Image

from partition.cluster.running import Running, find_running
from partition.cluster.state import (
    CoordinatorState,
    DeviceState,
    ProcessState,
    RunState,
    locked,
    write_state,
)
from partition.cluster.status import ClusterStatus, WorkerStatus, survey

METRICS = ("--metrics", "127.0.0.1:0")


@dataclass(frozen=True)
class Served:
    """A plan, its agents in the order of the devices, and its coordinator."""

    plan: TinyPlan
    agents: list[Agent]
    coordinator: Coordinator

    def running(self) -> Running:
        """As the verbs find it, without being told where."""
        return find_running(self.plan.path)

    def status(self) -> ClusterStatus:
        return survey(self.running())


@contextmanager
def served(
    plan: TinyPlan,
    home: Path,
    loads: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,)),
    flags: tuple[object, ...] = (),
    inputs: Sequence[Path] = (),
    **options: str,
) -> Iterator[Served]:
    """A cluster as a launch leaves it; `options` are of its state, `flags` of the coordinator,
    `inputs` the folders that the agents read, if any."""
    with (
        agents_of(plan, home, loads, inputs) as agents,
        coordinating(plan, addresses_of(agents), *flags) as coordinator,
    ):
        remember(plan, addresses_of(agents), coordinator, **options)
        yield Served(plan, agents, coordinator)


def remember(
    plan: TinyPlan,
    addresses: dict[str, str],
    coordinator: Coordinator | None,
    device_ids: dict[str, str] | None = None,
    **options: str,
) -> None:
    """Write the state of a launch of this plan."""
    own = None
    if coordinator is not None:
        process = psutil.Process(coordinator.process.pid)
        own = CoordinatorState(
            address=coordinator.address,
            process=ProcessState(pid=process.pid, created=process.create_time(), log="log"),
            plan_digest=plan.digest, devices=addresses, files_sha256="0" * 64,
            listen="127.0.0.1:0", options=dict(options),
        )  # fmt: skip
    devices = {
        name: DeviceState(kind="given", address=address, device_id=(device_ids or {}).get(name))
        for name, address in addresses.items()
    }
    with locked(plan.path):
        write_state(plan.path, RunState(plan_digest=plan.digest, devices=devices, coordinator=own))


def worker(status: ClusterStatus, name: str) -> WorkerStatus:
    """One of them, as SUBMODEL@DEVICE."""
    submodel, _, place = name.partition("@")
    (device,) = [device for device in status.devices if device.name == place]
    (found,) = [worker for worker in device.workers if worker.submodel == submodel]
    return found


def until_degraded(cluster: Served, *names: str) -> None:
    """The coordinator knows that these sub-models are gone."""
    eventually(lambda: set(cluster.status().coordinator.missing) == set(names))


def photo(path: Path, seed: int = 0) -> Path:
    """A picture of noise, 60 wide and 40 high."""
    noise = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def seen_by(cluster: Served) -> int:
    """How many requests the coordinator, one with METRICS, has answered or refused."""
    url = f"http://{cluster.coordinator.metrics}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line.split() for line in lines if line.startswith("edgevit_cluster_requests_total{")]
    return int(sum(float(count) for _, count in counts))


@contextmanager
def once_seen(cluster: Served, requests: int, do: Callable[[], object]) -> Iterator[None]:
    """Call `do` from another thread when the coordinator has seen so many more requests."""
    goal, over = seen_by(cluster) + requests, threading.Event()

    def watch() -> None:
        while not over.is_set():
            if seen_by(cluster) >= goal:
                do()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""How long a cluster that is not there would take for an answer, and how many it would give.

Every machine, link and call is simulated, event by event, from measured parts: the run of each
sub-model by itself on its device, what agent, coordinator and caller add to a call, and the bytes
of the calls. What it leaves out: several pictures in one call (the coordinator joins them where
sub-models take more than one), loss and TCP's own start, heartbeats, and that a worker which gave
no answer in time is not asked again at once. benchmarks/edvit_simulation.py compares it with real
clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partition.errors import PartitionError
from partition.simulation.cluster import Cluster, Request
from partition.simulation.fleet import Caller, Device, Fleet, Hub, Link, Submodel
from partition.simulation.fleets import Overheads, alike, fleet_of

__all__ = [
    "Caller", "Device", "Fleet", "Hub", "Link", "Load", "Overheads", "Prediction", "Submodel",
    "alike", "fleet_of", "simulate",
]  # fmt: skip

# The coordinator's stages as its answers name them, and before them the caller's own.
STAGES = ("caller", "decode", "queue", "network", "worker_queue", "compute", "wait", "fuse")


@dataclass(frozen=True)
class Load:
    """How requests come: `in_flight` callers that each wait for their answer, or `rate` a second.

    With a rate they come at random times (Poisson) whether or not the cluster keeps up.
    """

    in_flight: int = 1
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise PartitionError(f"expected at least 1 request in flight, got {self.in_flight}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise PartitionError(f"expected a rate above 0 requests a second, got {self.rate}")


@dataclass(frozen=True)
class Prediction:
    """What became of the requests.

    latencies_s are of the answers, in the order in which they came; stages_s has for each name in
    STAGES as many numbers, which add up to them. throughput is answers a second. stragglers: how
    often each worker ("sub0@pi-1") was the last. refused and degraded count requests, missing are
    the sub-models that no device is left for.
    """

    latencies_s: NDArray[np.float64]
    stages_s: Mapping[str, NDArray[np.float64]]
    throughput: float
    stragglers: Mapping[str, int]
    refused: int
    degraded: int
    missing: tuple[str, ...]

    def percentile(self, share: float) -> float:
        """Seconds that this part (0.95) of the answers do not take longer than; NaN for none."""
        if not self.latencies_s.size:
            return float("nan")
        return float(np.quantile(self.latencies_s, share))

    @property
    def p50_s(self) -> float:
        """The median latency."""
        return self.percentile(0.5)


def simulate(
    fleet: Fleet,
    load: Load | None = None,
    *,
    requests: int = 200,
    lost: Collection[str] = (),
    seed: int = 0,
) -> Prediction:
    """Let so many requests through a fleet; the same seed gives the same answer.

    The first in_flight latencies are not counted: the cluster was empty then. Devices that are
    `lost` are known to be gone, so that nobody waits for them. Raises PartitionError.
    """
    load = load or Load()
    warm = load.in_flight
    if requests < 1:
        raise PartitionError(f"expected at least 1 request, got {requests}")
    cluster = Cluster(fleet, lost, seed)
    if len(cluster.missing) == len(fleet.submodels):
        raise PartitionError(
            "every sub-model is on a lost device only: there would be no answer at all"
        )
    over: list[Request] = []
    total = requests + warm

    def ended(request: Request) -> None:
        over.append(request)
        if load.rate is None and begun[0] < total:
            begin()

    def begin() -> None:
        begun[0] += 1
        cluster.request(ended)

    def arrive() -> None:
        begin()
        if load.rate is not None and begun[0] < total:
            cluster.clock.after(cluster.random.exponential(1 / load.rate), arrive)

    begun = [0]
    for _ in range(load.in_flight if load.rate is None else 1):
        arrive()
    cluster.clock.run(lambda: len(over) == total)
    return _prediction(cluster, over, warm)


def _prediction(cluster: Cluster, over: list[Request], warm: int) -> Prediction:
    counted = over[warm:]
    answers = [request for request in counted if not request.refused]
    # Links begin with a full burst, which is none of the steady state: it is left out here too.
    seconds = over[-1].ended - over[warm - 1].ended
    rows = np.array([_stages(request) for request in answers]).reshape(-1, len(STAGES))
    last = Counter(f"{r.straggler.submodel}@{r.straggler.place}" for r in answers)
    return Prediction(
        latencies_s=rows.sum(1),
        stages_s=dict(zip(STAGES, rows.T, strict=True)),
        throughput=len(answers) / seconds if seconds > 0 else float("inf"),
        stragglers=dict(last.most_common()),
        refused=len(counted) - len(answers),
        degraded=sum(bool(request.missing) for request in answers),
        missing=cluster.missing,
    )


def _stages(request: Request) -> tuple[float, ...]:
    """Seconds of each of STAGES; network to wait as partition.serving.service tells them."""
    last = request.straggler
    return (
        request.arrived - request.begun + request.ended - request.answered,
        request.taken - request.arrived,
        request.asked - request.taken,
        last.elapsed - last.worker,
        last.worker - last.compute,
        last.compute,
        request.gathered - request.asked - last.elapsed,
        request.answered - request.gathered,
    )

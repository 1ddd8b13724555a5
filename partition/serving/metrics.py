"""What a coordinator counts, in the text format of Prometheus; and who counts where nobody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from partition.serving.fanout import Watcher
from partition.serving.worker_link import WorkerLink

SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip


class CoordinatorWatcher(Watcher, Protocol):
    """Counts calls to workers, and the requests themselves."""

    def request(self, status: str, degraded: bool, stages_us: Mapping[str, int]) -> None:
        """A request was answered with a gRPC status; stages_us are of those that were run."""
        ...


class Uncounted:
    """The watcher of a coordinator without metrics."""

    def request(self, status: str, degraded: bool, stages_us: Mapping[str, int]) -> None:
        """See CoordinatorWatcher."""

    def worker(self, submodel: str, device: str, status: str, elapsed_us: int) -> None:
        """See Watcher."""

    def hedge(self, submodel: str) -> None:
        """See Watcher."""


class CoordinatorMetrics:
    """The watcher that counts, and its registry."""

    def __init__(self, model: str, plan_digest: str) -> None:
        """Nothing has happened yet."""
        from prometheus_client import CollectorRegistry, Counter, Histogram, Info

        self.registry = CollectorRegistry()
        self._requests = Counter(
            "edgevit_cluster_requests", "Requests answered.", ["status", "degraded"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "edgevit_cluster_request_seconds", "Time of a request by stage.", ["stage"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._calls = Counter(
            "edgevit_cluster_worker_calls", "Calls to workers by how they ended.",
            ["submodel", "device", "status"], registry=self.registry,
        )  # fmt: skip
        self._call_seconds = Histogram(
            "edgevit_cluster_worker_seconds", "Time of answered calls to workers.",
            ["submodel", "device"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._hedges = Counter(
            "edgevit_cluster_hedges", "Calls to a replica beside or after the first place.",
            ["submodel"], registry=self.registry,
        )  # fmt: skip
        about = {"model": model, "plan_digest": plan_digest}
        Info("edgevit_cluster", "The coordinator.", registry=self.registry).info(about)

    def request(self, status: str, degraded: bool, stages_us: Mapping[str, int]) -> None:
        """See CoordinatorWatcher."""
        self._requests.labels(status, str(degraded).lower()).inc()
        for stage, microseconds in stages_us.items():
            self._seconds.labels(stage).observe(microseconds / 1e6)

    def worker(self, submodel: str, device: str, status: str, elapsed_us: int) -> None:
        """See Watcher."""
        self._calls.labels(submodel, device, status).inc()
        if status == "OK":
            self._call_seconds.labels(submodel, device).observe(elapsed_us / 1e6)

    def hedge(self, submodel: str) -> None:
        """See Watcher."""
        self._hedges.labels(submodel).inc()

    def watch(
        self, states: Callable[[], Iterable[tuple[WorkerLink, bool]]], waiting: Callable[[], int]
    ) -> None:
        """Read at every scrape which workers are in, and how many requests wait."""
        self.registry.register(_State(states, waiting))


class _State:
    """What is read, not counted. Called from the thread of a scrape."""

    def __init__(
        self, states: Callable[[], Iterable[tuple[WorkerLink, bool]]], waiting: Callable[[], int]
    ) -> None:
        self._states, self._waiting = states, waiting

    def collect(self) -> Iterator[Any]:
        """The gauges of this moment."""
        from prometheus_client.core import GaugeMetricFamily

        up = GaugeMetricFamily(
            "edgevit_cluster_worker_up", "1 where a worker may be asked.",
            labels=["submodel", "device"],
        )  # fmt: skip
        for worker, usable in self._states():
            up.add_metric([worker.member.name, worker.place], int(usable))
        yield up
        yield GaugeMetricFamily(
            "edgevit_cluster_queue_depth", "Requests that wait.", value=self._waiting()
        )

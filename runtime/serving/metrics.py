"""What an agent counts, in the text format of Prometheus on a port of its own.

Series are bounded: a model that is not loaded makes none, and beyond MODELS names the next ones
share the label 'other'.
"""

from __future__ import annotations

import os
from collections import Counter as Sums
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import GaugeMetricFamily

from runtime.environment import edgevit_version, temperature
from runtime.serving.memory import memory_of
from runtime.serving.model import ServedModel, Timings

MODELS = 200
OTHER = "other"
STAGES = ("queue", "decode", "compute", "encode", "total")
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The observer of every request of an agent, and the registry that tells of them."""

    def __init__(self, name: str, device_id: str) -> None:
        """Nothing has happened yet. `name` and `device_id` say whose numbers these are."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "edgevit_requests", "Inference requests answered.", ["model", "target", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "edgevit_request_seconds", "Time of a request by stage.", ["model", "stage"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "edgevit_batch_size", "Requests that an engine ran together.", ["model"],
            buckets=BATCHES, registry=self.registry,
        )  # fmt: skip
        self._restarts = Counter(
            "edgevit_engine_restarts", "Engine processes that were started again.", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self._uploads = Counter(
            "edgevit_uploads", "Uploads of bundles by how they ended.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        Info("edgevit", "The agent.", registry=self.registry).info(
            {"version": edgevit_version(), "name": name, "device_id": device_id}
        )
        self._known: set[str] = set()

    def request(
        self, model: str, target: str, status: str, timings: Timings | None, total_us: int
    ) -> None:
        """A request of a loaded model was answered; timings only where the engine ran."""
        label = self._label(model)
        self._requests.labels(label, target, status).inc()
        stages = {"total": total_us}
        if timings is not None:
            stages |= {stage: getattr(timings, f"{stage}_us") for stage in STAGES[:-1]}
        for stage, microseconds in stages.items():
            self._seconds.labels(label, stage).observe(microseconds / 1e6)

    def batch(self, model: str, size: int) -> None:
        """An engine ran `size` requests together."""
        self._batches.labels(self._label(model)).observe(size)

    def restart(self, model: str, reason: str) -> None:
        """An engine process of a model died and is started again."""
        self._restarts.labels(self._label(model)).inc()

    def upload(self, status: str) -> None:
        """An upload ended with a gRPC status: 'OK', 'DATA_LOSS'."""
        self._uploads.labels(status).inc()

    def watch(self, loaded: Callable[[], Iterable[ServedModel]]) -> None:
        """Read queues, memory and temperature at every scrape."""
        self.registry.register(_State(loaded, self._label))

    def _label(self, model: str) -> str:
        if model in self._known:
            return model
        if len(self._known) >= MODELS:
            return OTHER
        self._known.add(model)
        return model


class _State:
    """What is read, not counted. Called from the thread of a scrape."""

    def __init__(
        self, loaded: Callable[[], Iterable[ServedModel]], label: Callable[[str], str]
    ) -> None:
        self._loaded, self._label = loaded, label

    def collect(self) -> Iterator[Any]:
        """The gauges of this moment; temperature only where the system shows one."""
        models = list(self._loaded())
        queues = GaugeMetricFamily("edgevit_queue_depth", "Requests that wait.", labels=["model"])
        waiting: Sums[str] = Sums()
        for model in models:
            waiting[self._label(model.name)] += model.queued
        for label, count in waiting.items():
            queues.add_metric([label], count)
        yield queues
        memory = GaugeMetricFamily(
            "edgevit_memory_bytes",
            "Proportional set size where the system tells, else resident.",
            labels=["process"],
        )
        memory.add_metric(["agent"], memory_of([os.getpid()]))
        memory.add_metric(["engine"], memory_of(p for m in models for p in m.worker_pids()))
        yield memory
        celsius = temperature()
        if celsius is not None:
            yield GaugeMetricFamily(
                "edgevit_temperature_celsius", "The hottest thermal zone.", value=celsius
            )

"""CLUSTER-RUN.json: what a bench of a running cluster measured, raw samples included.

Times are milliseconds, memory is bytes. A number that was not measured is absent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runtime.manifest import Record
from runtime.run_record import Environment, LatencyStats

CLIENT = "client"
"""The stage between caller and coordinator: there and back, and gRPC on both sides."""
OF_THE_STRAGGLER = ("network", "worker_queue", "compute")
"""The stages that are of the sub-model that answered last."""

Kind = Literal["whole", "degraded"]


class ClusterSample(Record):
    """One answered request. `stages_ms` are in the order of the record's `stages`.

    at_ms is when it was sent, since the first one; ms is end to end as the caller saw it. The
    straggler is SUBMODEL@DEVICE; together is how many requests the coordinator ran at once.
    """

    at_ms: float
    ms: float
    stages_ms: list[float]
    straggler: str
    together: int
    missing: list[str] = Field(default_factory=list)
    input_age_ms: float | None = None
    input_spread_ms: float | None = None

    @property
    def kind(self) -> Kind:
        """Whether every sub-model has its part in it."""
        return "degraded" if self.missing else "whole"


class StageTime(Record):
    """One stage. share is its mean as a fraction of the end-to-end mean."""

    name: str
    latency: LatencyStats
    share: float


class AnswerGroup(Record):
    """The answers of one kind: whole and degraded ones are never in one number.

    per_s is how many a second came. unaccounted_ms is the mean end to end less the sum of the
    means of the stages.
    """

    kind: Kind
    per_s: float
    latency: LatencyStats
    stages: list[StageTime]
    unaccounted_ms: float
    input_age: LatencyStats | None = None
    input_spread: LatencyStats | None = None


class RunError(Record):
    """Requests that got no answer for one reason; `status` is gRPC's."""

    status: str
    reason: str
    count: int
    first_at_ms: float


class WorkerRun(Record):
    """A worker. straggler counts the whole answers that waited for it longest.

    p50_ms is the coordinator's, over the last answers of this worker, when the bench ended.
    """

    name: str
    submodel: str
    device: str
    classes: list[str]
    straggler: int
    p50_ms: float | None = None
    usable: bool | None = None
    reason: str = ""


class DeviceRun(Record):
    """A device as its agent tells; `reason` says why there are no facts. predicted_ms: the plan's.

    engine is what serves the plan's target there, threads are of its sub-models.
    """

    name: str
    address: str | None = None
    predicted_ms: float | None = None
    target: str
    environment: Environment | None = None
    edgevit_version: str | None = None
    engine: str | None = None
    threads: list[int] = Field(default_factory=list)
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    reason: str = ""


class ClusterRun(Record):
    """CLUSTER-RUN.json. `environment` is of the machine that asked; predicted_ms is the plan's."""

    schema_version: Literal[1] = 1
    kind: Literal["edgevit-cluster-run"] = "edgevit-cluster-run"
    edgevit_version: str
    created: str
    plan: str
    plan_digest: str
    model: str
    coordinator: str
    mode: str
    requests: int
    in_flight: int
    duration_s: float
    predicted_ms: float | None = None
    environment: Environment
    method: dict[str, str | int | float | bool]
    stages: list[str]
    samples: list[ClusterSample]
    groups: list[AnswerGroup]
    errors: list[RunError] = Field(default_factory=list)
    workers: list[WorkerRun]
    devices: list[DeviceRun]
    notes: list[str] = Field(default_factory=list)

    def group(self, kind: Kind) -> AnswerGroup | None:
        """The answers of one kind, where there are any."""
        return next((group for group in self.groups if group.kind == kind), None)

    @property
    def failed(self) -> int:
        """Requests that got no answer."""
        return sum(error.count for error in self.errors)

"""RUN.json: what a profile measured, raw samples included. A number not measured is absent.

Times are milliseconds, memory is bytes (resident set size of the measuring process).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runtime.manifest import Delegation, Record, Verification

RUN_SCHEMA_VERSION = 1


class Environment(Record):
    """The device, as far as its operating system tells."""

    device: str
    name: str | None = Field(default=None, description="of the agent that measured, if one did")
    hostname: str
    system: str
    machine: str
    python: str
    cpu_model: str | None = None
    cores_physical: int | None = None
    cores_logical: int | None = None
    cpu_flags: list[str] = Field(default_factory=list, description="SIMD extensions only")
    governor: str | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    memory_total: int | None = None
    load_average: float | None = Field(default=None, description="1 minute, at the start")


class LatencyStats(Record):
    """Statistics of the steady samples, in milliseconds."""

    n: int
    mean: float
    std: float
    min: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float


class OpTime(Record):
    """Time of one op: the mean over the runs of the per-op pass, in milliseconds a run."""

    name: str
    type: str
    ms: float
    share: float = Field(description="fraction of the sum over all ops")
    count: int = 1
    delegate: str | None = None


class Memory(Record):
    """Resident set size of the measuring process, bytes."""

    before_load: int
    after_load: int
    peak: int


class Measurement(Record):
    """One artefact on one engine in one fresh process.

    `samples_ms[b]` are the raw steady samples of block b; blocks of all the artefacts of a run
    take turns, so block b of one artefact ran right beside block b of the next.
    """

    id: str
    label: str
    model: str | None = None
    target: str | None = None
    file: str
    sha256: str
    size_bytes: int
    precision: str | None = None
    engine: str
    engine_version: str
    threads: int
    input_shape: list[int]
    input_dtype: str
    import_ms: float | None = Field(
        default=None, description="the engine's own packages, before the model; not in load_ms"
    )
    load_ms: float
    first_run_ms: float
    warmup_runs: int
    warmup_steady: bool
    samples_ms: list[list[float]]
    latency: LatencyStats
    memory: Memory
    delegation: Delegation | None = None
    verification: Verification | None = None
    ops: list[OpTime] | None = None
    ops_note: str | None = None


class NotMeasured(Record):
    """An artefact that could not be measured here, and why."""

    id: str
    label: str
    file: str
    target: str | None = None
    reason: str


class Comparison(Record):
    """Ratio of medians `a` over `b`, both from one interleaved run.

    `ratio` is median(a)/median(b); low and high are the 5th and 95th percentile over the blocks of
    the ratio of block medians.
    """

    a: str
    b: str
    ratio: float
    low: float
    high: float


class RunRecord(Record):
    """RUN.json."""

    schema_version: Literal[1] = 1
    kind: Literal["edgevit-run"] = "edgevit-run"
    edgevit_version: str
    created: str
    environment: Environment
    threads: int
    runs: int
    method: dict[str, str | int | float | bool]
    measurements: list[Measurement]
    not_measured: list[NotMeasured] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

"""Records of benches of a cluster, from seeded noise and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from report_records import environment

from partition.cluster.bench import STAGE_NAMES, groups_of
from partition.cluster.bench_record import ClusterRun, ClusterSample, DeviceRun, WorkerRun

SHARES = (0.2, 0.02, 0.0, 0.4, 0.18, 0.12, 0.05, 0.02)
WORKERS = ("sub0@desk", "sub1@pi-1", "sub1@desk")
CLASSES = {"sub0": ["ant", "bee", "cat"], "sub1": ["dog"]}


def samples(
    count: int,
    ms: float = 5.0,
    *,
    straggler: str = WORKERS[0],
    missing: tuple[str, ...] = (),
    seed: int = 0,
    shares: tuple[float, ...] = SHARES,
    begin_ms: float = 0.0,
) -> list[ClusterSample]:
    """Answers one after another; of each, `shares` are its stages and 1 % is nobody's."""
    assert len(shares) == len(STAGE_NAMES)
    found, at = [], begin_ms
    for value in ms * np.random.default_rng(seed).lognormal(0, 0.02, count):
        found.append(
            ClusterSample(
                at_ms=round(at, 6), ms=round(float(value), 6),
                stages_ms=[round(float(value * share), 6) for share in shares],
                straggler=straggler, together=1, missing=list(missing),
            )
        )  # fmt: skip
        at += float(value)
    return found


def cluster_run(answers: list[ClusterSample] | None = None, **more: Any) -> ClusterRun:
    """sub0 on desk, sub1 on pi-1 with a replica on desk; nothing is known of pi-1."""
    if answers is None:
        answers = [*samples(150), *samples(50, straggler=WORKERS[1], seed=1)]
    last = [sample.straggler for sample in answers if sample.kind == "whole"]
    duration_s = sum(sample.ms for sample in answers) / 1e3
    values: dict[str, Any] = {
        "edgevit_version": "0.1.0", "created": "2026-11-21T12:00:00+00:00", "plan": "plan",
        "plan_digest": "ab" * 32, "model": "vit_tiny", "coordinator": "127.0.0.1:8000",
        "mode": "broadcast", "requests": len(answers), "in_flight": 1, "duration_s": duration_s,
        "predicted_ms": 2.5, "environment": environment(), "method": {"clock": "perf_counter_ns"},
        "stages": list(STAGE_NAMES), "samples": answers, "groups": groups_of(answers, duration_s),
        "workers": [
            WorkerRun(
                name=name, submodel=name[:4], device=name[5:], classes=CLASSES[name[:4]],
                straggler=last.count(name), p50_ms=p50_ms, usable=True,
            )
            for name, p50_ms in zip(WORKERS, (3.5, 3.25, None), strict=True)
        ],
        "devices": [
            DeviceRun(
                name="desk", address="127.0.0.1:8001", predicted_ms=2.5, target="onnx",
                environment=environment(device="Desk"), edgevit_version="0.1.0",
                engine="onnxruntime 1.31.1", threads=[1], temperature_before_c=50.0,
                temperature_after_c=52.0,
            ),
            DeviceRun(name="pi-1", target="tflite", predicted_ms=1.5, reason="nobody answers"),
        ],
    }  # fmt: skip
    return ClusterRun(**{**values, **more})

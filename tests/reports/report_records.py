"""Run records as a profile would write them, from seeded noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.manifest import Delegation, Verification
from runtime.run_record import (
    Comparison,
    Environment,
    LatencyStats,
    Measurement,
    Memory,
    NotMeasured,
    OpTime,
    RunRecord,
)

LONG = (
    "efficientformerv2_s0 with talking heads as rank-3 softmax, folded, distilled head averaged, "
    "static int8 with float GELU"
)


def stats(blocks: list[list[float]]) -> LatencyStats:
    x = np.concatenate([np.asarray(b) for b in blocks])
    p50, p90, p95, p99 = (float(q) for q in np.percentile(x, [50, 90, 95, 99]))
    return LatencyStats(
        n=len(x), mean=float(x.mean()), std=float(x.std(ddof=1)), min=float(x.min()),
        max=float(x.max()), p50=p50, p90=p90, p95=p95, p99=p99,
    )  # fmt: skip


def noise(
    median_ms: float, seed: int, blocks: int = 10, runs: int = 20, sigma: float = 0.012,
    hiccups: float = 0.02, drift: float = 0.0,
) -> list[list[float]]:  # fmt: skip
    rng = np.random.default_rng(seed)
    out = []
    for b in range(blocks):
        x = median_ms * (1 + drift * b / max(blocks - 1, 1)) * rng.lognormal(0, sigma, runs)
        x *= 1 + rng.normal(0, sigma / 3)
        x = np.where(rng.random(runs) < hiccups, x * rng.uniform(1.1, 1.4, runs), x)
        out.append([round(float(v), 6) for v in x])
    return out


def passed(error: float = 1.6e-6, **more: Any) -> Verification:
    values: dict[str, Any] = {
        "status": "passed", "prover": "litert 2.3.0", "inputs": 16, "error_over_spread": error,
        "cosine_centred": 1.0, "top1_agreement": 1.0, "spread": 3.3,
        "gates": {"error_over_spread": 1e-4},
    }  # fmt: skip
    return Verification(**{**values, **more})


def measurement(
    id: str, engine: str, median_ms: float, seed: int, *, blocks: list[list[float]] | None = None,
    **more: Any,
) -> Measurement:  # fmt: skip
    samples = blocks if blocks is not None else noise(median_ms, seed)
    values: dict[str, Any] = {
        "id": id, "label": f"shvit_s1 {id}", "model": "shvit_s1", "target": id,
        "file": f"shvit_s1/model.{id}", "sha256": "0" * 64, "size_bytes": 25_512_344,
        "precision": "fp32", "engine": engine, "engine_version": "2.3.0", "threads": 1,
        "input_shape": [1, 3, 224, 224], "input_dtype": "float32", "load_ms": 18.4 + seed,
        "first_run_ms": 9.81 + seed / 10, "warmup_runs": 12, "warmup_steady": True,
        "samples_ms": samples, "latency": stats(samples),
        "memory": Memory(
            before_load=61_000_000, after_load=98_000_000, peak=112_345_678 + seed * 1_000_000
        ),
        "verification": passed(prover=f"{engine} 2.3.0"),
        "ops_note": None,
    }  # fmt: skip
    return Measurement(**{**values, **more})


def ops(
    seed: int, count: int, total: float, kinds: list[str], delegate: str | None
) -> list[OpTime]:
    rng = np.random.default_rng(seed)
    w = np.sort(rng.pareto(1.3, count) + 0.05)[::-1]
    w /= w.sum()
    return [
        OpTime(
            name=f"{kinds[i % len(kinds)]}_{i}", type=kinds[i % len(kinds)],
            ms=float(v * total), share=float(v), count=1 + i % 3,
            delegate=delegate if i % 5 else None,
        )
        for i, v in enumerate(w)
    ]  # fmt: skip


def compared(items: list[Measurement]) -> list[Comparison]:
    """All ordered pairs a before b, by the definition in runtime.run_record."""
    out = []
    for i, b in enumerate(items):
        for a in items[i + 1 :]:
            r = [
                np.median(x) / np.median(y) for x, y in zip(a.samples_ms, b.samples_ms, strict=True)
            ]
            low, high = np.percentile(r, [5, 95])
            out.append(
                Comparison(
                    a=a.id, b=b.id, ratio=a.latency.p50 / b.latency.p50,
                    low=float(low), high=float(high),
                )
            )  # fmt: skip
    return out


def environment(**more: Any) -> Environment:
    values: dict[str, Any] = {
        "device": "AMD EPYC 9654", "hostname": "bench-1", "system": "Linux 6.1", "python": "3.11.7",
        "machine": "x86_64", "cpu_model": "AMD EPYC 9654 96-Core Processor", "cores_physical": 1,
        "cores_logical": 2, "cpu_flags": ["avx2", "avx512f", "avx512_vnni"], "governor": None,
        "frequency_mhz": 2596.0, "temperature_c": None, "memory_total": 25_769_803_776,
        "load_average": 0.21,
    }  # fmt: skip
    return Environment(**{**values, **more})


def record(measurements: list[Measurement], **more: Any) -> RunRecord:
    values: dict[str, Any] = {
        "edgevit_version": "0.1.0", "created": "2026-11-21T01:14:00+00:00",
        "environment": environment(), "threads": 1, "runs": 200,
        "method": {
            "process": "one fresh process per artefact", "blocks": 10, "runs_per_block": 20,
            "interleaved": True, "min_seconds": 2.0, "clock": "time.perf_counter_ns",
            "input": "reference.npz, first picture",
        },
        "measurements": measurements, "comparisons": compared(measurements),
    }  # fmt: skip
    return RunRecord(**{**values, **more})


def three_engines(speed: float = 1.0, seed: int = 1, **more: Any) -> RunRecord:
    """LiteRT, ONNX Runtime, ExecuTorch; Core ML not measured; ops from two engines."""
    outside = {"native_layer_norm": 9, "softmax": 9, "expand_copy": 3, "split_with_sizes_copy": 12,
               "bmm": 18, "select_copy": 1, "mean": 1}  # fmt: skip
    items = [
        measurement(
            "tflite", "litert", 5.64 * speed, seed,
            delegation=Delegation(delegate="XNNPACK", partitions=1, nodes_delegated=212,
                                  nodes_total=212),
            ops=ops(seed, 64, 5.9 * speed, ["Convolution (NHWC, F32) IGEMM", "Fully Connected "
                    "(NC, F32) GEMM", "Softmax (NC, F32)", "Multiply (ND)"], "XNNPACK"),
        ),
        measurement(
            "onnx", "onnxruntime", 5.91 * speed, seed + 1, engine_version="1.31.1",
            verification=passed(0.9e-6, prover="onnxruntime 1.31.1"), size_bytes=25_100_000,
            ops=ops(seed + 1, 31, 6.2 * speed, ["Conv", "MatMul", "Softmax", "Add"],
                    "CPUExecutionProvider"),
        ),
        measurement(
            "pte", "executorch", 6.52 * speed, seed + 2, engine_version="1.4.1",
            target="executorch", verification=passed(5.5e-7, prover="executorch 1.4.1"),
            delegation=Delegation(delegate="XNNPACK", partitions=37, nodes_delegated=312,
                                  nodes_total=401, outside=outside),
            ops_note="ExecuTorch gives per-op times only in a build with the event tracer, which "
            "the pip package is not.",
        ),
    ]  # fmt: skip
    values: dict[str, Any] = {
        "not_measured": [
            NotMeasured(
                id="coreml", label="shvit_s1 coreml", file="shvit_s1/model.mlpackage",
                target="coreml", reason="Core ML runs on macOS only; this is Linux",
            )
        ],
        "notes": ["The weights are random: fit for latency only."],
    }  # fmt: skip
    return record(items, **{**values, **more})


def with_trouble() -> RunRecord:
    """A wrong artefact that is quicker than all, a restless one, a long label, an int8 one."""
    base = three_engines()
    wrong = measurement(
        "wrong", "executorch", 4.1, 9, label="shvit_s1 pte, channels-last", engine_version="1.4.1",
        verification=passed(
            0.48, status="failed", prover="executorch 1.4.1", cosine_centred=0.71,
            top1_agreement=0.25, reason="error over spread 0.48 is above 0.0001",
            first_divergence="blocks.3.attn.softmax",
        ),
    )  # fmt: skip
    restless = measurement(
        "int8", "litert", 0, 11, label=LONG, blocks=noise(4.6, 11, drift=0.18, hiccups=0.08),
        precision="int8", warmup_steady=False, warmup_runs=200, size_bytes=6_600_000,
        verification=passed(
            0.031, cosine_centred=0.99966, top1_agreement=0.9375, gates={"cosine_centred": 0.999}
        ),
        delegation=Delegation(delegate="XNNPACK", partitions=13, outside={"GELU": 12}),
        ops_note="Not asked for.",
    )  # fmt: skip
    unproven = measurement(
        "coreml", "coreml", 7.7, 12, label="shvit_s1 coreml",
        verification=Verification(
            status="not_executed", prover="Core ML", reason="Core ML runs on macOS only"
        ),
        ops_note="Not asked for.",
    )  # fmt: skip
    items = [*base.measurements, wrong, restless, unproven]
    return record(
        items, not_measured=base.not_measured, notes=base.notes,
        environment=environment(load_average=1.7, governor="powersave", temperature_c=61.5),
    )  # fmt: skip


def raspberry() -> RunRecord:
    """The same engines, ten times slower, another day."""
    return three_engines(
        9.7, 21,
        created="2026-11-20T16:02:00+01:00",
        environment=environment(
            device="Raspberry Pi 5", hostname="pi5", machine="aarch64", cpu_model="Cortex-A76",
            cores_physical=4, cores_logical=4, cpu_flags=["neon", "asimddp", "fp16"],
            governor="ondemand", temperature_c=58.2, memory_total=8_400_000_000,
        ),
    )  # fmt: skip

"""Our artefacts against the vendors' own conversions: latency on the same engine, and the time taken.

    python benchmarks/vs_vendor.py [--models shvit_s1,...] [--threads 1,2] [--runs 200]
                                   [--repeats 2] [--out docs/results/vs_vendor.md]

Vendor side: each vendor's converter with default options on timm's unfolded module with the same
weights (benchmarks/vendor_convert.py). Our side: `edgevit convert MODEL --to all --precision fp32`.
Latency: both artefacts in one interleaved run (A B A B), fresh process each, same engine, same
thread count; the ratio is ours over the vendor's, medians. Ours has the normalisation inside, the
vendor's gets a normalised input for free. Conversion: whole commands, alternating.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import geometric_mean, median

import torch
from result_page import publish

from converters.lower.base import TARGETS
from converters.source import load_source
from runtime.profile_items import ProfileItem
from runtime.profiler import profile
from runtime.stats import ratio

HERE = Path(__file__).parent
ROOT = HERE.parent
ENGINES = ("tflite", "executorch", "onnx")
LATENCY_LIMIT, CONVERT_LIMIT = 1.03, 0.70


def main() -> int:
    options = _options()
    models = options.models.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for model in models:
            torch.save(_timm_state(model), work / f"{model}.pt")
        times = {m: _convert(m, work, options.repeats) for m in models}
        cells = []
        for model in models:
            for engine in ENGINES:
                for threads in map(int, options.threads.split(",")):
                    cells.append(_latency(model, engine, threads, work, options.runs))
                    print(cells[-1]["line"], flush=True)
    publish(
        options.out,
        "Against the vendors' own converters",
        f"python benchmarks/vs_vendor.py --models {options.models} --threads {options.threads} "
        f"--runs {options.runs} --repeats {options.repeats}",
        (__doc__ or "").split("\n\n")[2],
        _tables(times, cells),
    )
    worst = max(c["ratio"].ratio for c in cells)
    slowest = max(median(t["ours"]) / median(t["vendor"]) for t in times.values())
    return int(worst > LATENCY_LIMIT or slowest > CONVERT_LIMIT)


def _timm_state(model: str) -> dict[str, torch.Tensor]:
    """The very weights that `edgevit convert` uses when none are given."""
    return load_source(model).module.state_dict()


def _convert(model: str, work: Path, repeats: int) -> dict[str, list]:
    """Wall seconds of our whole command and of the vendors' conversions, taking turns."""
    ours, vendor, whole, parts = [], [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        command = [sys.executable, str(HERE / "vendor_convert.py"), model]
        command += [str(work / f"{model}.pt"), str(work / f"{model}-vendor")]
        shutil.rmtree(work / f"{model}-vendor", ignore_errors=True)
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        whole.append(time.perf_counter() - started)
        parts.append(json.loads(printed.stdout.splitlines()[-1])["convert"])
        vendor.append(sum(parts[-1].values()))

        started = time.perf_counter()
        command = [sys.executable, "-m", "edgevit", "convert", model, "--to", "all"]
        command += ["--precision", "fp32", "-o", str(work / f"{model}-ours"), "--force"]
        # fp32 for all, so that the artefacts on both sides hold the same numbers.
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        ours.append(time.perf_counter() - started)
        print(f"{model}: ours {ours[-1]:.1f} s, vendor {vendor[-1]:.1f} s", flush=True)
    return {"ours": ours, "vendor": vendor, "whole": whole, "parts": parts}


def _latency(model: str, engine: str, threads: int, work: Path, runs: int) -> dict:
    file = TARGETS[engine].file
    items = [
        ProfileItem(work / f"{model}-{side}" / file, label=side, id=side)
        for side in ("ours", "vendor")
    ]
    record = profile(items, threads=threads, runs=runs, min_time_s=2.0)
    if record.not_measured:
        raise SystemExit(f"{model} {engine}: {record.not_measured[0].reason}")
    sides = {m.id: m for m in record.measurements}
    found = ratio(sides["ours"], sides["vendor"])
    islands = [sides[s].delegation.partitions if sides[s].delegation else "–" for s in sides]
    line = (
        f"| {model} | {engine} | {threads} | {sides['vendor'].latency.p50:.2f} | "
        f"{sides['ours'].latency.p50:.2f} | **{found.ratio:.3f}** | "
        f"{found.low:.2f}–{found.high:.2f} | {islands[1]} | {islands[0]} |"
    )
    return {"line": line, "ratio": found, "engine": engine, "threads": threads}


def _tables(times: dict, cells: list[dict]) -> list[str]:
    lines = [
        "## Latency, batch 1, fp32",
        "",
        "| model | engine | threads | vendor ms | ours ms | ratio | 5th–95th percentile | "
        "partitions vendor | partitions ours |",
        "|---|---|---|---|---|---|---|---|---|",
        *[c["line"] for c in cells],
        "",
        f"Highest ratio {max(c['ratio'].ratio for c in cells):.3f} (limit {LATENCY_LIMIT}). "
        "Geometric means: "
        + ", ".join(
            f"{e} at {t} thread{'s' * (t > 1)} "
            f"{geometric_mean([c['ratio'].ratio for c in cells if (c['engine'], c['threads']) == (e, t)]):.3f}"
            for e in ENGINES
            for t in sorted({c["threads"] for c in cells})
        )
        + ".",
        "",
        "## Time of the conversion",
        "",
        "Ours is the wall time of the whole command: start of Python, random weights settled, export, "
        "folding with proof, four targets, verification, bundle. The vendors' is the sum of their four "
        "conversions alone, without Python's start, imports and building the model; the last column "
        "has the ratio to their whole script.",
        "",
        "| model | vendor s (executorch + tflite + coreml + onnx) | ours s | ratio | ratio to whole script |",
        "|---|---|---|---|---|",
    ]
    for model, t in times.items():
        last = " + ".join(f"{s:.1f}" for s in t["parts"][-1].values())
        ours, vendor, whole = (median(t[k]) for k in ("ours", "vendor", "whole"))
        lines.append(
            f"| {model} | {vendor:.1f} ({last}) | {ours:.1f} | **{ours / vendor:.2f}** | "
            f"{ours / whole:.2f} |"
        )
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", default="shvit_s1,shvit_s4,efficientformer_l1,efficientformer_l3"
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", default="docs/results/vs_vendor.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Trains SHViT-S1 on digits with the default settings, converts it, evaluates every artefact.

    python benchmarks/train_digits.py [--out docs/results/train_digits.md]

Exits 1 below 97 percent of the held-out digits, over 10 minutes, or where an artefact that runs here
is more than 0.2 points from torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from result_page import publish

MODEL, DATA = "shvit_s1", "digits"
LEAST_TOP1 = 97.0
MOST_SECONDS = 600.0
MOST_POINTS = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="docs/results/train_digits.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained = edgevit("train", MODEL, "--data", DATA, "-o", "ckpt", cwd=folder)
        edgevit(*trained["next"][1:], cwd=folder)
        bundle = trained["next"][-1]
        weights = "ckpt/model.safetensors"
        found = edgevit("eval", bundle, "--data", DATA, "--weights", weights, cwd=folder)
        record = json.loads((Path(folder) / "ckpt" / "train.json").read_text())
        log = (Path(folder) / "ckpt" / "log.csv").read_text().split()
    best, last = trained["best"], trained["last"]
    measured = [r for r in found["results"] if r["status"] == "evaluated"]
    torch_top1 = 100 * next(r["top1"]["fraction"] for r in measured if r["name"] == "torch")
    same = {a["second"]: a for a in found["agreements"] if a["first"] == "torch"}
    rows, apart = [], [0.0]
    for r in found["results"]:
        if r["status"] == "evaluated":
            share = r["top1"]
            points = 100 * share["fraction"] - torch_top1
            apart.append(abs(points))
            agreed = (
                f"{same[r['name']]['same']} of {same[r['name']]['of']}"
                if r["name"] in same
                else "–"
            )
            rows.append(
                f"| {r['name']} | {r['precision'] or 'fp32'} | {r['engine']} {r['engine_version']} | "
                f"{100 * share['fraction']:.2f} ({share['correct']} of {share['of']}) | {points:+.2f} | "
                f"{agreed} |"
            )
        else:
            rows.append(f"| {r['name']} | {r['precision'] or '–'} | – | {r['reason']} | – | – |")
    settings = record["settings"]
    body = [
        f"Held out: **{best['top1_percent']:.2f} %** ({best['scores']['top1']} of "
        f"{best['scores']['count']}) at the best epoch, {best['epoch']} of {trained['epochs']}"
        f"{' (moving average of the weights)' if best['ema'] else ''}; after the last epoch "
        f"{last['top1']:.2f} % (moving average {last['ema_top1']:.2f} %). {trained['seconds']:.0f} s "
        f"for the epochs with {record['threads']} threads, {settings['train_examples']} training "
        f"pictures at {settings['height']} x {settings['width']}, load of the machine "
        f"{os.getloadavg()[2]:.1f}; accelerate {record['versions']['accelerate']}.",
        "",
        "| what runs | precision | engine | top-1 % held out | points from torch | same class as torch |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "## log.csv",
        "",
        *[f"    {line}" for line in log],
    ]  # fmt: skip
    publish(
        options.out,
        "SHViT-S1 trained on digits",
        "python benchmarks/train_digits.py",
        f"`edgevit train {MODEL} --data {DATA}` with the default settings, from random weights; then the "
        "`edgevit convert` line that it prints, and `edgevit eval` of the bundle on the same held-out "
        "digits. The best epoch is chosen on the held-out digits themselves, which flatters it a "
        "little; the last epoch is not chosen.",
        body,
    )
    good = (
        best["top1_percent"] >= LEAST_TOP1
        and trained["seconds"] < MOST_SECONDS
        and max(apart) <= MOST_POINTS
        and not any(r["status"] == "failed" for r in found["results"])
    )
    return int(not good)


def edgevit(*words: str, cwd: str) -> dict[str, Any]:
    """Run the command line; its JSON object. Stops the benchmark where it fails."""
    run = subprocess.run(
        [sys.executable, "-m", "edgevit", *words, "--json"],
        cwd=cwd, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        sys.exit(f"edgevit {' '.join(words)} ended with {run.returncode}:\n{run.stdout[-2000:]}")
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())

"""Every model of the zoo to every target at fp32: does it come out, how exact, how large, how whole.

    python benchmarks/zoo.py [--models PATTERN] [--limit SECONDS] [--out docs/results/zoo.md]

Random weights, seeded, statistics settled on pictures. One `edgevit convert MODEL --to all --precision
fp32` per model, each in a process of its own that is ended after --limit seconds. A model that does
not come out has its line in the table too. Exits 1 if any artefact fails or is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from result_page import publish

from converters.lower.base import TARGETS
from edgevit.models import list_models
from runtime.environment import describe
from runtime.manifest import Artifact, Manifest

ROOT = Path(__file__).resolve().parents[1]
ABOUT = """Error is the largest difference to torch over the spread of the torch outputs between the
nine inputs; the gate is 1e-4. Seconds are those of lowering and verifying that target, two targets
side by side; the whole conversion is in the second table. Core ML is converted, not executed: it
runs on macOS only."""
BUSY = 0.5  # load average over cores, above which the seconds are not this run's alone
HEAD = "| model | target | MB | verified | error / spread | s | partitions | outside the delegate | rewrites |"
FOLD_HEAD = "| model | params M before | after | MACs G | ops before | ops after | rules fired | float64 | float32 | whole conversion s |"


@dataclass
class Page:
    """The lines of both tables, and 'model target' -> why for what failed."""

    rows: list[str] = field(default_factory=list)
    proofs: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="*", help="a shell pattern over the zoo's names")
    parser.add_argument("--limit", type=int, default=1800, help="seconds per model")
    parser.add_argument("--out", default="docs/results/zoo.md", help="'' to print only")
    options = parser.parse_args()
    names = list_models(options.models)
    if not names:
        parser.error(f"no model matches {options.models!r}: `edgevit models` lists all")
    page, remark = Page(), shared()
    for name in names:
        before = len(page.rows)
        answer = convert(name, options.limit)
        add(page, name, answer)
        print(*page.rows[before:], sep="\n", flush=True)
    publish(
        options.out,
        "The zoo on every target, fp32",
        f"python benchmarks/zoo.py --models '{options.models}' --limit {options.limit}",
        f"{ABOUT}\n\n{remark}" if remark else ABOUT,
        [
            *table(HEAD, page.rows),
            "",
            "## Folding",
            "",
            *table(FOLD_HEAD, page.proofs),
            "",
            *(f"FAILED {what}: {why}\n" for what, why in page.failed.items()),
        ],
    )
    return int(bool(page.failed))


def shared() -> str:
    """What has to be said of the seconds where others keep the cores busy; empty where none do."""
    here = describe()
    if not here.load_average or not here.cores_logical:
        return ""
    if here.load_average <= BUSY * here.cores_logical:
        return ""
    return (
        f"At the start the machine's load average was {here.load_average:.1f} on "
        f"{here.cores_logical} cores: take the seconds as upper bounds."
    )


def convert(name: str, limit: int) -> dict[str, Any]:
    """What `edgevit convert --json` answers; {"error": ...} where it answers nothing in time."""
    with tempfile.TemporaryDirectory(prefix="edgevit-zoo-") as folder:
        words = ["convert", name, "--to", "all", "--precision", "fp32", "-o", f"{folder}/out"]
        process = subprocess.Popen(
            [sys.executable, "-m", "edgevit", *words, "--json"],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers and clears up
            process.communicate()
            return {"error": f"not finished in {limit} s"}
    try:
        answer: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        return {"error": f"exit code {process.returncode}: {err.strip()[-300:]}"}
    return answer


def add(page: Page, name: str, answer: dict[str, Any]) -> None:
    """Put one conversion on the page."""
    if "manifest" not in answer:
        why = one_line(answer["error"])
        page.failed[name] = why
        page.rows.append(f"| {name} | all | – | FAILED: {why} | – | – | – | – | – |")
        return
    manifest = Manifest.model_validate(answer["manifest"])
    page.failed |= {f"{name} {t}": one_line(why) for t, why in answer["failed"].items()}
    for target in TARGETS:
        if target in manifest.artifacts:
            page.rows.append(row(name, manifest.artifacts[target]))
        else:
            page.rows.append(
                f"| {name} | {target} | – | FAILED: not converted | – | – | – | – | – |"
            )
            page.failed.setdefault(f"{name} {target}", "not converted")
    p = manifest.reparam
    page.proofs.append(
        f"| {name} | {p.params_before / 1e6:.3f} | {p.params_after / 1e6:.3f} | "
        f"{p.macs_before / 1e9:.4f} | {p.nodes_before} | {p.nodes_after} | "
        f"{sum(p.rules.values())} | {p.max_rel_float64:.1e} | {p.max_rel_float32:.1e} | "
        f"{manifest.timings_s['total']:.0f} |"
    )


def row(name: str, artifact: Artifact) -> str:
    v, d = artifact.verification, artifact.delegation
    error = f"{v.error_over_spread:.1e}" if v.error_over_spread is not None else "–"
    outside = counted(d.outside) or "none" if d else "–"
    seconds = sum(t for stage, t in artifact.timings_s.items() if stage != "import")
    cells = [
        name,
        artifact.target,
        f"{artifact.size_bytes / 1e6:.1f}",
        v.status.replace("_", " "),
        error,
        f"{seconds:.0f}",
        str(d.partitions) if d else "–",
        outside,
        counted(artifact.rewrites) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def counted(times: dict[str, int]) -> str:
    return ", ".join(f"{what} x{n}" for what, n in times.items())


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def table(head: str, rows: list[str]) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|", *rows]


if __name__ == "__main__":
    sys.exit(main())

"""Every model of the zoo to every target at fp32: does it come out, how exact, how large, how whole.

    python benchmarks/zoo.py [--models PATTERN] [--out docs/results/zoo.md]

Random weights, seeded, statistics settled on pictures. Exits 1 if any artefact fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from converters.lower.base import TARGETS, versions_of
from converters.pipeline import ConvertOptions, convert, failed_targets
from edgevit.models import list_models
from runtime.environment import describe


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="*")
    parser.add_argument("--out", default="docs/results/zoo.md")
    options = parser.parse_args()
    rows, proofs, failed = [], [], {}
    for name in list_models(options.models):
        with tempfile.TemporaryDirectory() as folder:
            manifest = convert(name, Path(folder) / name, ConvertOptions(precision="fp32"))
        failed |= {f"{name} {t}": why for t, why in failed_targets(manifest).items()}
        p = manifest.reparam
        proofs.append(
            f"| {name} | {p.params_before / 1e6:.3f} | {p.params_after / 1e6:.3f} | "
            f"{p.macs_before / 1e9:.4f} | {p.nodes_before} | {p.nodes_after} | "
            f"{sum(p.rules.values())} | {p.max_rel_float64:.1e} | {p.max_rel_float32:.1e} | "
            f"{manifest.timings_s['total']:.0f} |"
        )
        for target, a in manifest.artifacts.items():
            v, d = a.verification, a.delegation
            error = f"{v.error_over_spread:.1e}" if v.error_over_spread is not None else "–"
            outside = ", ".join(f"{k} x{n}" for k, n in d.outside.items()) if d else "–"
            rows.append(
                f"| {name} | {target} | {a.size_bytes / 1e6:.1f} | {v.status.replace('_', ' ')} | "
                f"{error} | {d.partitions if d else '–'} | {outside or 'none'} |"
            )
            print(rows[-1], flush=True)
    here = describe()
    packages = sorted({p for t in TARGETS.values() for p in t.packages})
    text = "\n".join(
        [
            "# The zoo on every target, fp32",
            "",
            f"`python benchmarks/zoo.py`, {datetime.now(UTC):%Y-%m-%d}. {here.cpu_model}, "
            f"{here.cores_logical} cores, {here.system}, Python {here.python}; "
            + ", ".join(f"{k} {v}" for k, v in versions_of(tuple(packages)).items())
            + ".",
            "",
            "Error is the largest difference to torch over the spread of the torch outputs between "
            "the nine inputs; the gate is 1e-4. Core ML is converted, not executed: it runs on macOS "
            "only.",
            "",
            "| model | target | MB | verified | error / spread | partitions | outside the delegate |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Folding",
            "",
            "| model | params M before | after | MACs G | ops before | ops after | rules fired | "
            "float64 | float32 | whole conversion s |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *proofs,
            "",
            *[f"FAILED {what}: {why}" for what, why in failed.items()],
        ]
    )
    print(text)
    if options.out:
        Path(options.out).write_text(text.rstrip() + "\n", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

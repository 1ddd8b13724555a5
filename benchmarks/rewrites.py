"""What each of ExecuTorch's rewrites is for: the same folded model with all of them, and without one.

    python benchmarks/rewrites.py [--models shvit_s1,...] [--out docs/results/rewrites.md]

The error of the artefact on its engine, and into how many delegate calls the graph falls. Counting
only, no times. Exits 1 where the error with all rewrites is beyond the gate of fp32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from result_page import publish
from torch.export import ExportedProgram

from converters.export import export_folded, export_source
from converters.lower import Job, lower_to
from converters.lower.rewrites import REWRITES, registry, rewritten
from converters.pictures import proof_pictures
from converters.reparam import reparameterize
from converters.source import load_source
from runtime.compare import GATES, agreement
from runtime.inputs import to_input
from runtime.manifest import Delegation
from runtime.sessions import open_session

TARGET = "executorch"
MODELS = "shvit_s1,efficientformer_l1,efficientformerv2_s0"
ABOUT = """Random weights, seeded, statistics settled on pictures; nine pictures. The error is the largest
difference to torch over the spread of torch's outputs between the pictures (gate 1e-4). A partition
is one call of the XNNPACK delegate; what is outside of it runs on ExecuTorch's own kernels, one at a
time. Rewrites that do not fit a model are left out of its rows."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--out", default="docs/results/rewrites.md", help="'' to print only")
    options = parser.parse_args()
    rows, beyond = [], []
    for name in options.models.split(","):
        program, pictures, want = prepared(name)
        for without in [None, *rewritten(TARGET, program)[1]]:
            error, delegation = on_engine(program, pictures, want, without)
            outside = ", ".join(f"{op} x{n}" for op, n in delegation.outside.items()) or "none"
            rows.append(
                f"| {name} | {f'without *{without}*' if without else 'all'} | {error:.1e} | "
                f"{delegation.partitions} | {outside} |"
            )
            print(rows[-1], flush=True)
            if without is None and not error <= GATES["fp32"]["error_over_spread"]:
                beyond.append(name)
    publish(
        options.out,
        "ExecuTorch with and without the rewrites",
        f"python benchmarks/rewrites.py --models {options.models}",
        ABOUT,
        [
            "| model | rewrites | error / spread | partitions | outside the delegate |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )
    return int(bool(beyond))


def prepared(name: str) -> tuple[ExportedProgram, np.ndarray, np.ndarray]:
    """The folded program, pictures (N, H, W, 3) in [0, 1], and torch's outputs (N, classes)."""
    source = load_source(name)
    pictures = proof_pictures(source.preprocessing.height, source.preprocessing.width)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    folded = reparameterize(export_source(source), x_BCHW)
    return export_folded(folded.module, x_BCHW[:1]), pictures, folded.outputs.numpy()


def on_engine(
    program: ExportedProgram, pictures: np.ndarray, want: np.ndarray, without: str | None
) -> tuple[float, Delegation]:
    """The artefact's error over the spread, and what of it the delegate takes."""
    kept = [rewrite for rewrite in REWRITES if rewrite.name != without]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(registry, "REWRITES", kept):
        file = Path(folder) / "model.pte"
        lower_to(TARGET, program, Job(file, "fp32", *pictures.shape[1:3]))
        session = open_session(file, threads=1)
        got = np.concatenate([session.run(to_input(p, session.input)) for p in pictures])
        delegation = session.delegation()
        session.close()
    assert delegation is not None
    return agreement(want, got).error_over_spread, delegation


if __name__ == "__main__":
    sys.exit(main())

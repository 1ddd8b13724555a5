"""The subtraction of the mean at the input of an artefact, in three widths of the constant.

    python benchmarks/input_offset.py [--out docs/results/input_offset.md]

SHViT's first two stem convolutions at 224 px, without a subtraction and with (1, 3, 1, 1),
(1, 3, 1, W) and (1, 3, H, W) constants; interleaved, per engine and thread count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from result_page import publish
from torch import Tensor, nn

from converters.lower import Job, lower_to
from converters.lower.rewrites import registry
from runtime.profile_items import ProfileItem
from runtime.profiler import profile

SIZE = 224
WIDTHS = {
    "no subtraction": None,
    "(1, 3, 1, 1)": (1, 3, 1, 1),
    "(1, 3, 1, W)": (1, 3, 1, SIZE),
    "(1, 3, H, W)": (1, 3, SIZE, SIZE),
}


class Stem(nn.Module):
    def __init__(self, width: tuple[int, ...] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        )
        self.width = width
        if width:
            mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
            self.register_buffer("mean", mean.expand(width).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x - self.mean if self.width else x).mean((2, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--out", default="docs/results/input_offset.md")
    options = parser.parse_args()
    rows = []
    x = torch.rand(1, 3, SIZE, SIZE)
    # Without the rewrite that this is the evidence for.
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(registry, "REWRITES", []):
        for target, suffix in (("tflite", "tflite"), ("executorch", "pte"), ("onnx", "onnx")):
            items = []
            for index, (name, width) in enumerate(WIDTHS.items()):
                file = Path(folder) / f"{index}.{suffix}"
                program = torch.export.export(Stem(width).eval(), (x,))
                lower_to(target, program, Job(file, "fp32", SIZE, SIZE))
                items.append(ProfileItem(file, label=name, id=name))
            for threads in (1, 2):
                record = profile(items, threads=threads, runs=options.runs)
                cells = [f"{m.latency.p50:.3f}" for m in record.measurements]
                rows.append(f"| {target} | {threads} | " + " | ".join(cells) + " |")
                print(rows[-1], flush=True)
    publish(
        options.out,
        "The subtraction of the mean at the input",
        f"python benchmarks/input_offset.py --runs {options.runs}",
        "Median ms of SHViT's first two stem convolutions, interleaved.",
        [
            "| engine | threads | " + " | ".join(WIDTHS) + " |",
            "|---|---|" + "---|" * len(WIDTHS),
            *rows,
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

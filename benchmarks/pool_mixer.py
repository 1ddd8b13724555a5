"""Exact forms of EfficientFormer's scaled pool mixer, x + g * (pool(x) - x), timed on each engine.

    python benchmarks/pool_mixer.py [--threads 1] [--out docs/results/pool_mixer.md]

Six mixers with a 1x1 convolution between them, stage 1 and stage 3 of L1. All forms are the same
function; they differ in what the engine has to do. One interleaved run per engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from result_page import publish
from torch import Tensor, nn

from converters.lower import Job, lower_to
from runtime.profile_items import ProfileItem
from runtime.profiler import profile
from runtime.stats import ratio

FORMS = {
    "multiply": "x + g * (pool(x) - x), the model's own",
    "dw1x1": "x + dw1x1_g(pool(x) - x), the rule's",
    "dw3x3 * map": "M * dw3x3_g/9(x) + dw1x1_1-g(x), M the border map",
    "two dw3x3": "dw3x3(x) + (M - 1) * dw3x3_g/9(x)",
}


class Mixer(nn.Module):
    def __init__(self, form: str, channels: int, size: int) -> None:
        super().__init__()
        self.form, self.channels = form, channels
        g = torch.rand(channels, 1, 1, 1) * 0.5 + 0.2
        box = torch.ones(channels, 1, 3, 3) / 9 * g
        centre = box.clone()
        centre[:, :, 1:2, 1:2] += 1 - g
        inside = F.avg_pool2d(torch.ones(1, 1, size, size), 3, 1, 1, count_include_pad=True)
        for name, value in (
            ("g", g), ("rest", 1 - g), ("box", box), ("centre", centre), ("border", 1 / inside),
        ):  # fmt: skip
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        c = self.channels
        if self.form == "dw3x3 * map":
            return F.conv2d(x, self.box, None, 1, 1, 1, c) * self.border + F.conv2d(
                x, self.rest, groups=c
            )
        if self.form == "two dw3x3":
            return F.conv2d(x, self.centre, None, 1, 1, 1, c) + (self.border - 1) * F.conv2d(
                x, self.box, None, 1, 1, 1, c
            )
        difference = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x
        if self.form == "multiply":
            return x + difference * self.g.reshape(1, c, 1, 1)
        return x + F.conv2d(difference, self.g, groups=c)


class Stack(nn.Module):
    def __init__(self, form: str, channels: int, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, channels, 1)]
        for _ in range(6):
            layers += [Mixer(form, channels, size), nn.Conv2d(channels, channels, 1), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", default="docs/results/pool_mixer.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for channels, size in ((48, 56), (224, 14)):
            x = torch.rand(1, 3, size, size)
            reference = Stack("multiply", channels, size).eval()(x)
            for target, suffix in (("tflite", "tflite"), ("executorch", "pte"), ("onnx", "onnx")):
                items = []
                for index, form in enumerate(FORMS):
                    module = Stack(form, channels, size).eval()
                    assert torch.allclose(module(x), reference, atol=1e-5), form
                    file = Path(folder) / f"{channels}-{index}.{suffix}"
                    program = torch.export.export(module, (x,))
                    lower_to(target, program, Job(file, "fp32", size, size))
                    items.append(ProfileItem(file, label=form, id=form))
                record = profile(items, threads=options.threads, runs=options.runs)
                by_id = {m.id: m for m in record.measurements}
                cells = [
                    f"{by_id[f].latency.p50:.3f} ms ({ratio(by_id[f], by_id['multiply']).ratio:.2f})"
                    for f in FORMS
                ]
                rows.append(f"| {channels}x{size}x{size} | {target} | " + " | ".join(cells) + " |")
                print(rows[-1], flush=True)
    publish(
        options.out,
        "The scaled pool mixer in four exact forms",
        f"python benchmarks/pool_mixer.py --threads {options.threads} --runs {options.runs}",
        "Median of one run of six mixers, and the ratio to the model's own form, interleaved.",
        [
            *[f"- {name}: `{what}`" for name, what in FORMS.items()],
            "",
            "| shape | engine | " + " | ".join(FORMS) + " |",
            "|---|---|" + "---|" * len(FORMS),
            *rows,
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

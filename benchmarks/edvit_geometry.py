"""What keeping k of h heads leaves of ViT-S, ViT-B and ViT-L: by geometry, and counted as built.

    python benchmarks/edvit_geometry.py [--out docs/results/edvit-geometry.md]
    python benchmarks/edvit_geometry.py --latency [--engine onnx] [--out ...]

Exits 1 where a built module has other parameters or MACs than the geometry says, or ViT-B with 2 of
12 heads misses the ratios of ED-ViT (34.1 in size, 28.9 in MACs; with --latency 26 in time). --latency
wants an idle machine: ViT-B whole and with 2 heads by turns, one picture, one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from result_page import publish
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.models import create_model
from edgevit.models.vit import VisionTransformer
from partition.cutting.geometry import Geometry, Keep, geometry_of, scaled
from partition.cutting.slicing import Kept, slice_vit

CLASSES, SIDE = 10, 224
MODELS = {
    "vit_small": (6, 4, 3, 2, 1),
    "vit_base": (12, 8, 6, 5, 4, 3, 2, 1),
    "vit_large": (16, 11, 8, 6, 5, 3, 2, 1),
}
SIZE_RATIO, MAC_RATIO, TIME_RATIO = 34.1, 28.9, 26.0
ROUNDS, RUNS = 6, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--engine", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--out", default="docs/results/edvit-geometry.md")
    options = parser.parse_args()
    body, good = [], True
    for name, keeps in MODELS.items():
        with torch.device("meta"):
            model = create_model(name, CLASSES)
        full = geometry_of(model)
        body += [
            f"## {name}, {full.heads} heads",
            "",
            "| heads kept | width | FFN | parameters, M | MiB | GMAC | size ratio | MAC ratio | feature, bytes | the slice, counted |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for k in keeps:
            small = scaled(full, Keep(k))
            same = counted(sliced(model, small)) == (small.params, small.macs)
            good &= same
            body.append(row(k, full, small, "the same" if same else "OTHERWISE"))
        body.append("")
    base = Geometry(12, 12, 64, 768, 3072, 197, CLASSES)
    two = scaled(base, Keep(2))
    size, macs = base.bytes / two.bytes, base.macs / two.macs
    good &= size >= SIZE_RATIO and macs >= MAC_RATIO
    body += [
        f"ViT-B with 2 of 12 heads: {size:.2f} times smaller (ED-ViT's abstract says {SIZE_RATIO}), "
        f"{macs:.2f} times fewer MACs (it says {MAC_RATIO} in latency).",
    ]
    if options.latency:
        whole, part = latencies(base, two, options.engine)
        good &= whole / part >= TIME_RATIO
        body += [
            "",
            f"One picture on one thread, {options.engine}, random weights, by turns: "
            f"{1e3 * whole:.1f} ms whole, {1e3 * part:.1f} ms with 2 heads, {whole / part:.1f} times faster.",
        ]
    publish(
        options.out,
        "What keeping k of h heads leaves of a ViT",
        f"python benchmarks/edvit_geometry.py{' --latency --engine ' + options.engine if options.latency else ''}",
        f"{SIDE} px, patches of 16, {CLASSES} classes, float32. Residual width, heads and FFN keep the same "
        "share. Parameters and MACs are computed from the widths alone; then the model is sliced to them, "
        "the parameters of the slice counted, and its MACs by torch's flop counter in one forward.",
        body,
    )
    return int(not good)


def row(k: int, full: Geometry, small: Geometry, built: str) -> str:
    return (
        f"| {k} | {small.embed_dim} | {small.mlp_dim} | {small.params / 1e6:.3f} | {small.bytes / 2**20:.2f} | "
        f"{small.macs / 1e9:.3f} | {full.bytes / small.bytes:.1f} | {full.macs / small.macs:.1f} | "
        f"{small.feature_bytes} | {built} |"
    )


def sliced(model: nn.Module, g: Geometry) -> VisionTransformer:
    """The first channels, heads and units of a model: which ones does not matter for the counts."""
    with torch.device("meta"):
        heads, ffn = (tuple(range(g.heads)),) * g.depth, (tuple(range(g.mlp_dim)),) * g.depth
        return slice_vit(model, Kept(tuple(range(g.embed_dim)), heads, ffn))


def counted(module: VisionTransformer) -> tuple[int, int]:
    """Parameters, and MACs of one forward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2


def latencies(base: Geometry, two: Geometry, engine: str) -> tuple[float, float]:
    """Median seconds of both, measured by turns after a warm-up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    modules = [
        VisionTransformer(g.embed_dim, g.depth, g.heads, g.classes, SIDE).eval()
        for g in (base, two)
    ]
    if engine == "onnx":
        return by_profiler(modules)
    x = torch.randn(1, 3, SIDE, SIDE)
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        for round_ in range(ROUNDS):
            for found, module in zip(times, modules, strict=True):
                for _ in range(RUNS):
                    begun = time.perf_counter()
                    module(x)
                    if round_:  # the first is the warm-up
                        found.append(time.perf_counter() - begun)
    return median(times[0]), median(times[1])


def by_profiler(modules: list[VisionTransformer]) -> tuple[float, float]:
    from converters.lower import Job, lower_to
    from runtime.profile_items import ProfileItem
    from runtime.profiler import profile

    with tempfile.TemporaryDirectory() as folder:
        items = []
        for index, module in enumerate(modules):
            file = Path(folder) / f"{index}.onnx"
            program = torch.export.export(module, (torch.randn(1, 3, SIDE, SIDE),))
            lower_to("onnx", program, Job(file, "fp32", SIDE, SIDE))
            items.append(ProfileItem(file, label=str(index), id=str(index)))
        record = profile(items, threads=1, runs=ROUNDS * RUNS)
        whole, part = (m.latency.p50 / 1e3 for m in record.measurements)
    return whole, part


if __name__ == "__main__":
    sys.exit(main())

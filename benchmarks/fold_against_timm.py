"""Our folding and timm's own reparameterization of the same models: what is left of each.

    python benchmarks/fold_against_timm.py [--models fastvit_t8,...] [--out docs/results/fold_against_timm.md]

Parameters (for us every floating-point number that the folded graph stores, tables made of constants
included) and calls of the exported graph. Counting only; exits 1 where folding changes the function.
"""

from __future__ import annotations

import argparse
import copy
import sys

import numpy as np
import torch
from result_page import publish
from torch import nn
from torch.fx import GraphModule

from converters.pictures import proof_pictures
from converters.refs.timm_zoo import import_timm
from converters.reparam import reparameterize
from converters.source import load_source

SMALL, FULL = 64, 224
MODELS = {
    "mobileone_s0": SMALL,
    "mobileone_s4": SMALL,
    "repvgg_a0": SMALL,
    "repvit_m0_9": SMALL,
    "fastvit_t8": SMALL,
    "fastvit_sa12": SMALL,
    "levit_128s": FULL,
    "convit_tiny": FULL,
}
ABOUT = """Training form, timm's `reparameterize_model` (and `fuse`, where the model has one), and ours. A call
is a node of the exported graph: convolution, activation, and all else. For timm the parameters are
counted; for us all floating-point numbers that are stored, so also what was computed from constants
once and for all. LeViT's position biases, which timm gathers at every run, are stored gathered, and
its two heads become one. ConViT has no other form in timm, whose position tables are not parameters
and not counted. The error is the largest difference between ours and the training form over the
spread of the outputs, in float64."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument(
        "--out", default="docs/results/fold_against_timm.md", help="'' to print only"
    )
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown {', '.join(unknown)}; expected some of {', '.join(MODELS)}")
    rows = []
    for name in names:
        rows.append(compared(name, MODELS[name]))
        print(rows[-1], flush=True)
    publish(
        options.out,
        "Folding against timm's own reparameterization",
        f"python benchmarks/fold_against_timm.py --models {options.models}",
        ABOUT,
        [
            "| model | input | parameters, training | timm's | ours | ours / timm's | calls, training | timm's | ours | float64 error |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
        ],
    )
    return 0


@torch.no_grad()
def compared(name: str, size: int) -> str:
    """The row of one model. Raises ProofFailed where ours is another function."""
    source = load_source(f"timm:{name}", size=size)
    pre = source.preprocessing
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (pre.mean, pre.std))
    pictures = np.ascontiguousarray(proof_pictures(size, size)[:3].transpose(0, 3, 1, 2))
    x_BCHW = (torch.from_numpy(pictures) - mean) / std
    source.module(x_BCHW[:1])  # ConViT makes its tables in the first run
    theirs = folded_by_timm(source.module)
    proof = reparameterize(exported(source.module, x_BCHW), x_BCHW).proof
    timms, ours = parameters(theirs), proof.params_after
    return (
        f"| {name} | {size} | {count(proof.params_before)} | {count(timms)} | {count(ours)} | "
        f"{ours / timms:.4f} | {proof.nodes_before} | {calls(exported(theirs, x_BCHW))} | "
        f"{proof.nodes_after} | {proof.max_rel_float64:.1e} |"
    )


def folded_by_timm(model: nn.Module) -> nn.Module:
    folded = import_timm().utils.reparameterize_model(copy.deepcopy(model))
    if hasattr(folded, "fuse"):
        folded.fuse()
    return folded


def exported(model: nn.Module, x_BCHW: torch.Tensor) -> GraphModule:
    return torch.export.export(model, (x_BCHW[:1],)).module(check_guards=False)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def calls(graph: GraphModule) -> int:
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


if __name__ == "__main__":
    sys.exit(main())

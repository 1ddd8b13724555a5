"""timm's own reparameterization of its models: ours leaves no more parameters and no more ops."""

from __future__ import annotations

import copy
import operator
from types import ModuleType

import pytest
import torch
from fold_check import EXACT, fold_as_is, operators
from helpers import pictures, randomise, settle_batch_norm
from torch import nn
from torch.fx import GraphModule, Node

SIZE = 64
# Name and the millions of parameters that are published for the folded form.
MODELS = {
    "fastvit_t8": 3.996,
    "fastvit_sa12": 11.545,
    "mobileone_s0": 2.079,
    "mobileone_s4": 14.838,
    "repvgg_a0": 8.309,
    "repvit_m0_9": 5.067,
    "levit_128s": None,
}
# Their position biases are gathered once by folding, at every run by timm: left out of the count.
GATHERED = {"levit_128s": "attention_biases"}
FAST = {"fastvit_t8", "repvgg_a0"}


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
@torch.no_grad()
def test_no_more_is_left_than_timm_leaves(name: str, timm: ModuleType) -> None:
    size = 224 if name.startswith("levit") else SIZE
    model = randomise(timm.create_model(name), 0).eval()
    images = pictures(3, size, seed=1)
    settle_batch_norm(model, images)
    theirs = _folded_by_timm(timm, model).double()
    folded = fold_as_is(model.double(), images.double(), runs=1)
    left = folded.stored
    kept = dict(theirs.named_parameters())
    if name in GATHERED:
        kept = {key: value for key, value in kept.items() if GATHERED[name] not in key}
        left = _weights_of_maps(folded.module)
    assert left <= sum(p.numel() for p in kept.values())
    exported = torch.export.export(theirs, (images[:1].double(),)).module()
    assert sum(folded.ops.values()) <= sum(operators(exported).values())
    assert folded.ops["batch_norm"] == 0
    assert folded.error <= EXACT
    if MODELS[name] is not None:
        assert left <= MODELS[name] * 1e6 * 1.001


def _weights_of_maps(module: GraphModule) -> int:
    """The numbers in weights and biases of convolutions and linear layers."""
    maps = [
        n
        for n in module.graph.nodes
        if str(n.target) in ("aten.conv2d.default", "aten.linear.default")
    ]
    constants = {a for n in maps for a in n.args[1:3] if isinstance(a, Node)}
    return sum(operator.attrgetter(str(c.target))(module).numel() for c in constants)


def _folded_by_timm(timm: ModuleType, model: nn.Module) -> nn.Module:
    copied = timm.utils.reparameterize_model(copy.deepcopy(model))
    if hasattr(copied, "fuse"):
        copied.fuse()
    return copied


@pytest.mark.slow
@torch.no_grad()
def test_convit_does_not_grow(timm: ModuleType) -> None:
    """Its position scores are computed from one table of constants; stored they are 1.5 million."""
    model = randomise(timm.create_model("convit_tiny"), 0).double().eval()
    images = pictures(3, 224, seed=1).double()
    model(images[:1])  # makes the tables
    before = sum(p.numel() for p in model.parameters())
    folded = fold_as_is(model, images, runs=1)
    assert folded.stored <= 1.03 * before
    assert folded.error <= EXACT

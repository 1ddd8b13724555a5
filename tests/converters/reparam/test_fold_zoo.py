"""The models of the zoo, at full size, fold whole and prove it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from fold_check import (
    BN_NEXT,
    BN_PREVIOUS,
    CONSTANTS,
    NORM_AFFINE,
    PARALLEL,
    POOL_SCALE,
    RESIDUAL,
    SCALE_NEXT,
    SCALE_PREVIOUS,
    SCALE_PRODUCT,
    operators,
)
from torch.fx import GraphModule, Node

from converters.export import export_source
from converters.pictures import proof_pictures
from converters.reparam import Reparameterized, reparameterize
from converters.source import Source, load_source
from edgevit.models import list_models, model_config

INPUTS = 2

# Millions of parameters after folding, from the same algebra on the official code (models.md, 1.3
# and 3) and, for fmvit, from its docstring.
FOLDED = {
    "shvit_s1": 6.309,
    "shvit_s2": 11.454,
    "shvit_s3": 14.210,
    "shvit_s4": 16.546,
    "efficientformerv2_s0": 3.372,
    "efficientformerv2_l": 25.730,
    "fmvit_t": 2.033,
}
# What gathering the position biases of each head adds to that, in numbers: (heads, queries, keys).
GATHERED = {
    "efficientformerv2_s0": 8 * (4 * (49 - 1) * 49 + (49 - 1) * 196),
    "efficientformerv2_l": 8 * (12 * (49 - 1) * 49 + (49 - 1) * 196),
}

EVERY_FORMER = {BN_PREVIOUS, PARALLEL, SCALE_PREVIOUS, SCALE_PRODUCT}
RULES_OF = {
    "shvit": {BN_PREVIOUS, BN_NEXT, RESIDUAL, SCALE_PRODUCT, NORM_AFFINE},
    "efficientformer": EVERY_FORMER | {NORM_AFFINE, POOL_SCALE},
    "efficientformerv2": EVERY_FORMER | {BN_NEXT, CONSTANTS},
    "fmvit": {BN_PREVIOUS, BN_NEXT, PARALLEL, SCALE_PRODUCT},
    "vit": {SCALE_PRODUCT, NORM_AFFINE},
}

# A few of each family here; all of them fold, with the same proof, in `make bench`.
FAST = {"shvit_s1", "efficientformer_l1", "efficientformerv2_s0"}
SLOW = {"shvit_s4", "efficientformer_l3", "efficientformerv2_l", "fmvit_t", "deit_tiny_distilled"}
MODELS = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in list_models()
    if name in FAST | SLOW
]
SCALINGS = {"mul", "div"}


def fold_source(ref: str) -> tuple[Source, Reparameterized]:
    source = load_source(ref)
    pictures = proof_pictures(source.preprocessing.height, source.preprocessing.width)
    x_BCHW = torch.from_numpy(pictures[:INPUTS]).permute(0, 3, 1, 2).contiguous()
    return source, reparameterize(export_source(source), x_BCHW)


@pytest.fixture(scope="module")
def shvit_s1() -> tuple[Source, Reparameterized]:
    return fold_source("shvit_s1")


def constant_scalings(module: GraphModule) -> Iterator[Node]:
    """Multiplications and divisions of which one side is a number or a weight."""
    for node in module.graph.nodes:
        if str(getattr(node.target, "overloadpacket", "")).removeprefix("aten.") in SCALINGS:
            sides = node.args[:2]
            if any(not isinstance(side, Node) or side.op == "get_attr" for side in sides):
                yield node


@pytest.mark.parametrize("name", MODELS)
def test_zoo_model_folds_whole(name: str, request: pytest.FixtureRequest) -> None:
    source, folded = request.getfixturevalue(name) if name == "shvit_s1" else fold_source(name)
    proof, ops = folded.proof, operators(folded.module)
    assert ops["batch_norm"] == 0
    assert list(constant_scalings(folded.module)) == []
    assert proof.max_rel_float64 <= proof.gate_float64
    assert proof.max_rel_float32 <= proof.gate_float32 <= 2e-5
    assert proof.params_before == sum(p.numel() for p in source.module.parameters())
    assert proof.params_after <= proof.params_before
    assert proof.nodes_after < proof.nodes_before
    norms = [n for n in folded.module.graph.nodes if str(n.target).endswith("_norm.default")]
    family = model_config(name).family
    assert bool(norms) == (NORM_AFFINE in RULES_OF[family])
    assert not any(source.op == "get_attr" for norm in norms for source in norm.all_input_nodes)
    assert set(proof.rules) >= RULES_OF[family]
    if name in FOLDED:
        expected = FOLDED[name] * 1e6 + GATHERED.get(name, 0)
        assert proof.params_after == pytest.approx(expected, rel=1e-3)
    if family == "fmvit":
        assert proof.macs_after < 0.9 * proof.macs_before
    else:
        # EfficientFormer's pool mixers' scales are depthwise 1x1 convolutions now.
        assert proof.macs_after == pytest.approx(proof.macs_before, rel=1e-3)


@torch.no_grad()
def test_the_folded_outputs_are_the_models(shvit_s1: tuple[Source, Reparameterized]) -> None:
    """Against the torch module itself, not against its export."""
    source, folded = shvit_s1
    pre = source.preprocessing
    pictures = torch.from_numpy(proof_pictures(pre.height, pre.width)[:INPUTS])
    mean, std = torch.tensor(pre.mean), torch.tensor(pre.std)
    want = source.module(((pictures - mean) / std).permute(0, 3, 1, 2))
    spread = (want.amax(0) - want.amin(0)).max()
    assert spread > 0.1
    assert (folded.folded_outputs - want).abs().max() / spread <= 1e-5


def test_timms_own_module_folds_as_well(
    timm: ModuleType, shvit_s1: tuple[Source, Reparameterized]
) -> None:
    """The same rules, the same counts and the same size, from another spelling of the network."""
    assert timm
    _, ours = shvit_s1
    _, theirs = fold_source("timm:shvit_s1")
    assert operators(theirs.module)["batch_norm"] == 0
    assert list(constant_scalings(theirs.module)) == []
    assert theirs.proof.params_after == ours.proof.params_after
    for rule in (BN_PREVIOUS, BN_NEXT, RESIDUAL, SCALE_PRODUCT, NORM_AFFINE, SCALE_NEXT):
        assert theirs.proof.rules[rule] == ours.proof.rules[rule], rule

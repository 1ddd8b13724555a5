"""Smaller EfficientFormers with weights of a network or a supernet: against the source, masked."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from efficientformer_tools import (
    CLASSES,
    FAMILY,
    POOLING,
    SHAPE,
    SIDE,
    batches,
    importance_of,
    network,
    supernet,
)
from helpers import error_over_spread, pictures, randomise, settle_batch_norm
from torch import nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Importance, Subnet
from converters.slim.families.efficientformer_cut import pooling_from_attention, spaces_of
from converters.slim.slicing import strongest
from edgevit.models.efficientformer import (
    AttentionBlock,
    EfficientFormerShape,
    LayerScale,
    PoolingBlock,
)

IMAGES = pictures(4, SIDE, seed=5)


def inherit(source: nn.Module, subnet: Subnet, importance: Importance) -> nn.Module:
    made = FAMILY.inherit(source, subnet, importance, CLASSES, SIDE)
    assert made.shape == subnet.shape and not made.training
    return made


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Importance]:
    source = network()
    return source, importance_of(source)


@pytest.fixture(scope="module")
def meta() -> tuple[nn.Module, Importance]:
    source = supernet()
    return source, importance_of(source)


def test_the_whole_is_the_source(trained) -> None:
    source, importance = trained
    made = inherit(source, FAMILY.whole(SHAPE), importance)
    with torch.no_grad():
        assert torch.equal(made(IMAGES), source(IMAGES))
    assert list(made.state_dict()) == list(source.state_dict())


def test_the_source_stays_as_it_is(trained) -> None:
    source, importance = trained
    before = copy.deepcopy(source.state_dict())
    made = inherit(source, FAMILY.scaled(SHAPE, 0.5), importance)
    with torch.no_grad():
        for value in made.parameters():
            value.zero_()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("stage", "block", "attention"), [(0, 0, 1), (2, 1, 1), (2, 2, 0), (3, 1, 1)]
)
def test_a_dropped_block_is_a_silent_one(trained, stage, block, attention) -> None:
    """A block whose layer scales are zero is the identity."""
    source, importance = trained
    whole = FAMILY.whole(SHAPE)
    left = tuple(b for b in whole.blocks[stage] if b != block)
    depths = tuple(d - (i == stage) for i, d in enumerate(SHAPE.depths))
    attending = {(0, 0): (0, 0, 1, 3), (2, 1): (0, 0, 1, 3), (2, 2): (0, 0, 0, 3)}
    attention_depths = attending.get((stage, block), (0, 0, 1, 2))
    subnet = Subnet(
        replace(SHAPE, depths=depths, attention_depths=attention_depths),
        (*whole.blocks[:stage], left, *whole.blocks[stage + 1 :]),
    )
    silent = copy.deepcopy(source)
    kinds = (PoolingBlock, AttentionBlock)
    found = [b for b in silent.stages[stage].blocks if isinstance(b, kinds)][block]
    for scale in (found.ls1, found.ls2):
        nn.init.zeros_(scale.gamma)
    with torch.no_grad():
        assert error_over_spread(inherit(source, subnet, importance)(IMAGES), silent(IMAGES)) < 1e-5


def masked(source: nn.Module, importance: Importance, shape: EfficientFormerShape) -> nn.Module:
    """The source, with what is cut away set to zero where it is written.

    Exact where no LayerNorm looks at a narrowed stream: in pooling stages.
    """
    model = copy.deepcopy(source)
    spaces, state = spaces_of(source), model.state_dict()
    widths = {"stem": shape.widths[0] // 2} | {
        f"stage{i + 1}": w for i, w in enumerate(shape.widths)
    }
    widths |= {
        space: 4 * shape.widths[int(space.split(".")[1])]
        for space in importance.channels
        if space.endswith(".mlp")
    }
    writers = (".bias", ".gamma", "norm.weight", "norm1.weight", "norm2.weight")
    for name, lies in spaces.items():
        space = lies[0]
        if space is None or len(lies) > 1 or not name.endswith(writers):
            continue
        kept = strongest(importance.channels[space], widths[space])
        gone = torch.ones(len(state[name]), dtype=torch.bool)
        gone[kept] = False
        state[name][gone] = 0
    return model


@pytest.mark.parametrize("widths", [(16, 16, 32, 48), (16, 32, 16, 48), (16, 16, 16, 48)])
def test_a_narrow_network_is_the_masked_one(widths) -> None:
    source = network(POOLING)
    importance = importance_of(source)
    shape = replace(POOLING, widths=widths)
    made = inherit(source, Subnet(shape, FAMILY.whole(POOLING).blocks), importance)
    with torch.no_grad():
        want = masked(source, importance, shape)(IMAGES)
        assert error_over_spread(made(IMAGES), want) <= 1e-5
        assert (want - source(IMAGES)).abs().max() > 1e-2  # the mask does something


def test_the_narrowed_stem_is_the_masked_one() -> None:
    wide = replace(POOLING, widths=(48, 32, 32, 48))
    source = network(wide)
    importance = importance_of(source)
    shape = replace(wide, widths=(32, 32, 32, 48))
    made = inherit(source, Subnet(shape, FAMILY.whole(wide).blocks), importance)
    with torch.no_grad():
        assert error_over_spread(made(IMAGES), masked(source, importance, shape)(IMAGES)) <= 1e-5


def test_where_tokens_are_normalised_the_kept_channels_are_the_strongest(trained) -> None:
    """By name, for a few tensors: rows and columns of the source."""
    source, importance = trained
    shape = replace(SHAPE, widths=(16, 32, 32, 32))
    made = inherit(source, Subnet(shape, FAMILY.whole(SHAPE).blocks), importance)
    out = importance.channels["stage4"].topk(32).indices.sort().values
    inner = importance.channels["stages.3.blocks.2.mlp"].topk(128).indices.sort().values
    ours, theirs = made.stages[3].blocks[2], source.stages[3].blocks[2]
    assert torch.equal(ours.mlp.fc1.weight, theirs.mlp.fc1.weight[inner][:, out])
    assert torch.equal(ours.token_mixer.qkv.weight, theirs.token_mixer.qkv.weight[:, out])
    assert torch.equal(ours.token_mixer.proj.bias, theirs.token_mixer.proj.bias[out])
    assert torch.equal(ours.token_mixer.attention_biases, theirs.token_mixer.attention_biases)
    assert torch.equal(made.head.weight, source.head.weight[:, out])
    assert torch.equal(made.norm.bias, source.norm.bias[out])


def hard(source: nn.Module, subnet: Subnet) -> nn.Module:
    """The supernet with alphas that leave one path of each block: the subnet's."""
    model = copy.deepcopy(source)
    for stage, metas in enumerate(model.metas()):
        blocks = list(subnet.blocks[stage])
        attending = blocks[len(blocks) - subnet.shape.attention_depths[stage] :]
        for index, meta in enumerate(metas):
            kind = "identity" if index not in blocks else "pool"
            kind = "attention" if index in attending else kind
            with torch.no_grad():
                meta.alpha.fill_(-1e4)
                meta.alpha[meta.paths.index(kind)] = 1e4
    return model


@pytest.mark.parametrize(
    ("depths", "attention", "blocks"),
    [
        ((2, 2, 3, 3), (0, 0, 3, 3), ((0, 1), (0, 1), (0, 1, 2), (0, 1, 2))),
        ((2, 2, 3, 3), (0, 0, 0, 0), ((0, 1), (0, 1), (0, 1, 2), (0, 1, 2))),
        ((1, 2, 2, 2), (0, 0, 1, 2), ((1,), (0, 1), (0, 2), (1, 2))),
        ((1, 1, 1, 3), (0, 0, 0, 1), ((0,), (1,), (1,), (0, 1, 2))),
    ],
)
def test_a_subnet_is_the_supernet_with_hard_choices(meta, depths, attention, blocks) -> None:
    source, importance = meta
    subnet = Subnet(replace(source.shape, depths=depths, attention_depths=attention), blocks)
    with torch.no_grad():
        got = inherit(source, subnet, importance)(IMAGES)
        assert error_over_spread(got, hard(source, subnet)(IMAGES)) <= 1e-5


def test_a_narrow_subnet_is_the_masked_supernet_with_hard_choices() -> None:
    source = supernet(POOLING)
    importance = importance_of(source)
    shape = replace(POOLING, widths=(16, 16, 16, 48), depths=(2, 1, 2, 3))
    subnet = Subnet(shape, ((0, 1), (1,), (0, 2), (0, 1, 2)))
    with torch.no_grad():
        want = hard(masked(source, importance, shape), subnet)(IMAGES)
        assert error_over_spread(inherit(source, subnet, importance)(IMAGES), want) <= 1e-5


def test_attention_of_a_network_becomes_pooling_with_its_mlp() -> None:
    """On normalised input both MLPs are one function, also after BatchNorm is settled anew."""
    torch.manual_seed(0)
    attention = randomise(AttentionBlock(24, 4), seed=3)
    with torch.no_grad():
        attention.norm2.weight.fill_(0.8)
    pool = PoolingBlock(24).eval()
    pool.load_state_dict(pooling_from_attention(attention.state_dict()))
    x_BCHW = torch.randn(64, 24, 4, 4)
    x_BNC = F.layer_norm(x_BCHW.flatten(2).transpose(1, 2), (24,))
    x_BCHW = x_BNC.transpose(1, 2).reshape(64, 24, 4, 4)
    with torch.no_grad():
        want = attention.mlp(attention.norm2(x_BNC)).transpose(1, 2).reshape(64, 24, 4, 4)
        got = pool.mlp(x_BCHW)
        assert (got - want).abs().max() < 1e-4 * want.std()
        settle_batch_norm(pool, 7 * x_BCHW)  # at any scale of the stream
        settled = pool.mlp(7 * x_BCHW)
    error = (settled - want).square().mean().sqrt() / want.std()
    assert error < 0.15, float(error)
    assert float(pool.ls1.gamma.detach().abs().max()) < 1e-4


def test_a_network_without_attention_is_inherited_from_one_with(trained) -> None:
    source, importance = trained
    shape = replace(SHAPE, attention_depths=(0, 0, 0, 1), widths=(16, 32, 16, 32))
    made = inherit(source, Subnet(shape, FAMILY.whole(SHAPE).blocks), importance)
    with torch.no_grad():
        assert bool(made(IMAGES).isfinite().all())
    (own,) = [b for b in made.stages[2].blocks if isinstance(b, PoolingBlock)][2:]
    inner = importance.channels["stages.2.blocks.3.mlp"].topk(64).indices.sort().values
    out = importance.channels["stage3"].topk(16).indices.sort().values
    theirs = source.stages[2].blocks[3]
    assert torch.equal(own.ls2.gamma, theirs.ls2.gamma[out])
    want = theirs.mlp.fc1.weight[inner][:, out] * theirs.norm2.weight[out]
    assert torch.allclose(own.mlp.fc1.weight[..., 0, 0], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("subnet", "said"),
    [
        (Subnet(SHAPE, ((0,), (0, 1), (0, 1, 2), (0, 1, 2))), "a subnet of depths"),
        (Subnet(SHAPE, ((1, 0), (0, 1), (0, 1, 2), (0, 1, 2))), "stage 1 of the source has 2"),
        (Subnet(SHAPE, ((0, 2), (0, 1), (0, 1, 2), (0, 1, 2))), "stage 1 of the source has 2"),
        (
            FAMILY.whole(replace(SHAPE, attention_depths=(0, 0, 2, 3))),
            "has no attention in stages.2",
        ),
        (FAMILY.whole(replace(SHAPE, widths=(16, 32, 32, 64))), "cannot choose 64 channels"),
    ],
)
def test_subnets_that_the_source_does_not_have(trained, subnet, said) -> None:
    with pytest.raises(SlimError, match=said):
        FAMILY.inherit(*trained[:1], subnet, trained[1], CLASSES, SIDE)


@pytest.mark.parametrize(
    ("classes", "side", "said"),
    [
        (4, SIDE, r"head.weight takes a tensor of shape \(4, 48\)"),
        (CLASSES, 32, "attention_biases"),
    ],
)
def test_other_classes_or_another_side(trained, classes, side, said) -> None:
    with pytest.raises(SlimError, match=said):
        FAMILY.inherit(trained[0], FAMILY.whole(SHAPE), trained[1], classes, side)


def test_narrowing_needs_the_channels_importance(trained) -> None:
    blocks = Importance(trained[1].blocks)
    with pytest.raises(SlimError, match="says nothing of the channels of stage2"):
        inherit(trained[0], FAMILY.whole(replace(SHAPE, widths=(16, 16, 32, 48))), blocks)


def test_another_module_is_no_source() -> None:
    with pytest.raises(SlimError, match="a Linear is no EfficientFormer"):
        FAMILY.inherit(nn.Linear(2, 2), FAMILY.whole(SHAPE), Importance(()), CLASSES, SIDE)


def test_blocks_that_do_nothing_are_least_important(trained) -> None:
    """A network in which three blocks are silent: the action is to drop them."""
    source = copy.deepcopy(trained[0])
    for stage, place in ((0, 1), (1, 0), (3, 2)):
        block = source.stages[stage].blocks[place + (stage == 3)]
        for scale in block.modules():
            if isinstance(scale, LayerScale):
                nn.init.constant_(scale.gamma, 1e-7)
    importance = FAMILY.importance(source, batches(2))
    dropped = {
        action.stage: action.block
        for action in FAMILY.actions(FAMILY.whole(SHAPE), importance)
        if action.kind == "drop"
    }
    assert (dropped[0], dropped[1], dropped[3]) == (1, 0, 2)


def test_every_space_of_a_supernet_is_scored(meta) -> None:
    source, importance = meta
    spaces = {space for lies in spaces_of(source).values() for space in lies if space}
    assert spaces == set(importance.channels)
    assert sum(space.endswith("attention.mlp") for space in spaces) == 6
    state = source.state_dict()
    missing = {
        name for name, value in state.items()
        if value.is_floating_point() and name not in spaces_of(source)
    }  # fmt: skip
    kinds = {name.rpartition(".")[2] for name in missing}
    # What has no channels to cut: heads' own dims, classes, tables and alphas.
    assert kinds == {"alpha", "attention_biases", "bias"}
    qkv = {f"stages.{s}.blocks.{b}.attention.token_mixer.qkv" for s in (2, 3) for b in range(3)}
    owners = {name.removesuffix(".bias") for name in missing if name.endswith(".bias")}
    assert owners == {"head", "head_dist"} | qkv

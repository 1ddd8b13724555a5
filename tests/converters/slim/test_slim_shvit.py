"""Slimmed SHViTs against the whole network with the removed channels and blocks set to zero."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Subnet
from converters.slim.families.registry import family_of
from converters.slim.families.shvit_spaces import kept_of
from edgevit.models.shvit import SHViT, SHViTShape

SHAPE = SHViTShape((32, 48, 64), (2, 2, 3), (0, 12, 16))
SIDE, CLASSES = 64, 10
FAMILY = family_of("shvit")


@pytest.fixture(scope="module")
def source() -> SHViT:
    model = randomise(SHAPE.build(CLASSES, SIDE), 0)
    return settle_batch_norm(model, pictures(6, SIDE, 1))


@pytest.fixture(scope="module")
def importance(source: SHViT) -> Importance:
    return FAMILY.importance(source, [(pictures(6, SIDE, 2), torch.arange(6))])


class GroupNormOfSome(nn.Module):
    """Over the kept channels alone; nothing comes out of the others."""

    def __init__(self, norm: nn.GroupNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        some = x[:, self.kept]
        mean, var = some.mean((1, 2, 3), keepdim=True), some.var((1, 2, 3), False, keepdim=True)
        gain, bias = (p[self.kept][:, None, None] for p in (self.norm.weight, self.norm.bias))
        y[:, self.kept] = (some - mean) / (var + self.norm.eps).sqrt() * gain + bias
        return y


@torch.no_grad()
def masked(source: SHViT, subnet: Subnet, kept: dict[str, Tensor]) -> nn.Module:
    """The source as it is, where what the subnet does not have is zero or the identity."""
    model = copy.deepcopy(source)

    def gone(space: str, channels: int) -> Tensor:
        return torch.tensor([i for i in range(channels) if i not in set(kept[space].tolist())])

    def silent(norm: nn.Module, space: str) -> None:
        norm.weight[gone(space, len(norm.weight)).long()] = 0
        norm.bias[gone(space, len(norm.bias)).long()] = 0

    def unread(layer: nn.Module, space: str) -> None:
        layer.weight[:, gone(space, layer.weight.shape[1]).long()] = 0

    def ffn(module: nn.Module, path: str, stream: str) -> None:
        unread(module.pw2.c, f"{path}.pw1")
        silent(module.pw2.bn, stream)

    for index in (2, 4, 6):
        unread(model.patch_embed[index].c, f"patch_embed.{index - 2}")
    silent(model.patch_embed[6].bn, "stage0")
    for s, stage in enumerate(model.stages):
        own, down = f"stage{s}", f"stages.{s}.downsample"
        if s:
            first, second, merge, fourth, fifth = stage.downsample
            silent(first.m.bn, f"stage{s - 1}")
            ffn(second.m, f"{down}.1.m", f"stage{s - 1}")
            unread(merge.conv3.c, f"{down}.2.conv1")
            unread(merge.se.fc1, f"{down}.2.conv1")
            unread(merge.se.fc2, f"{down}.2.se.fc1")
            silent(merge.conv3.bn, own)
            silent(fourth.m.bn, own)
            ffn(fifth.m, f"{down}.4.m", own)
        for b, block in enumerate(stage.blocks):
            path = f"stages.{s}.blocks.{b}"
            silent(block.conv.m.bn, own)
            ffn(block.ffn.m, f"{path}.ffn.m", own)
            if source.shape.attention_dims[s]:
                mixer = block.mixer.m
                mixer.pre_norm = GroupNormOfSome(mixer.pre_norm, kept[f"{own}/attended"])
                attended = source.shape.attention_dims[s]
                values = gone(f"{path}.mixer.m/values", attended).long()
                mixer.proj[1].c.weight[:, values] = 0
                silent(mixer.proj[1].bn, own)
            if b not in subnet.blocks[s]:
                stage.blocks[b] = nn.Identity()
    for head in (model.head, model.head_dist):
        if head is not None:
            unread(head.l, "stage2")
    return model


SUBNETS = {
    "fewer blocks": Subnet(replace(SHAPE, depths=(1, 2, 2)), ((1,), (0, 1), (0, 2))),
    "narrow first stage": Subnet(replace(SHAPE, widths=(16, 48, 64)), ((0, 1), (0, 1), (0, 1, 2))),
    "narrow attention": Subnet(
        replace(SHAPE, widths=(32, 32, 48), attention_dims=(0, 8, 12)), ((0, 1), (0, 1), (0, 1, 2))
    ),
    "rest alone": Subnet(replace(SHAPE, widths=(32, 48, 40)), ((0, 1), (0, 1), (0, 1, 2))),
    "all of it": Subnet(SHViTShape((16, 32, 16), (1, 1, 2), (0, 8, 4)), ((0,), (1,), (1, 2))),
}


@pytest.mark.parametrize("name", SUBNETS)
@torch.no_grad()
def test_a_subnet_equals_the_source_with_zeros(
    source: SHViT, importance: Importance, name: str
) -> None:
    subnet = SUBNETS[name]
    got = FAMILY.inherit(source, subnet, importance, CLASSES, SIDE).double()
    want = masked(source, subnet, kept_of(SHAPE, subnet.shape, importance)).double()
    images = pictures(4, SIDE, 3).double()
    spread = (want(images).amax(0) - want(images).amin(0)).max()
    assert spread > 0.1
    assert (got(images) - want(images)).abs().max() <= 1e-10 * spread
    whole = copy.deepcopy(source).double()
    assert (whole(images) - want(images)).abs().max() > 0.01 * spread


@torch.no_grad()
def test_two_heads_are_kept_both() -> None:
    shape = replace(SHAPE, heads=2)
    source = settle_batch_norm(randomise(shape.build(CLASSES, SIDE), 5), pictures(6, SIDE, 1))
    importance = FAMILY.importance(source, [(pictures(6, SIDE, 2), torch.arange(6))])
    subnet = FAMILY.apply(FAMILY.whole(shape), Action("narrow", 2), importance)
    got = FAMILY.inherit(source, subnet, importance, CLASSES, SIDE).double()
    want = masked(source, subnet, kept_of(shape, subnet.shape, importance)).double()
    images = pictures(4, SIDE, 3).double()
    assert (got(images) - want(images)).abs().max() <= 1e-10 * want(images).abs().max()
    first, second = got.train()(images)
    assert not torch.allclose(first, second)


def test_what_attends_keeps_its_share(source: SHViT, importance: Importance) -> None:
    subnet = FAMILY.whole(SHAPE)
    seen = []
    while Action("narrow", 2) in FAMILY.actions(subnet, importance):
        subnet = FAMILY.apply(subnet, Action("narrow", 2), importance)
        seen.append((subnet.shape.widths[2], subnet.shape.attention_dims[2]))
    assert seen == [(48, 12), (32, 8), (16, 4)]
    # The published ones are no multiples of 4, and the rest may not grow.
    for widths, attention in (((128, 308, 448), (0, 66, 96)), ((192, 352, 448), (0, 75, 96))):
        zoo = SHViTShape(widths, (1, 1, 1), attention)
        assert FAMILY.scaled(zoo, 1.0).shape == zoo
        for seed in range(30):
            shape = FAMILY.random(zoo, np.random.default_rng(seed)).shape
            for width, a, full, most in zip(
                shape.widths, shape.attention_dims, widths, attention, strict=True
            ):
                assert a <= most and width - a <= full - most
                assert abs(a - most * width / full) <= 4


def test_zero_gammas_give_scores_and_slim(source: SHViT) -> None:
    """As initialised, every residual branch is silent: no block matters, and yet it can be cut."""
    model = SHAPE.build(CLASSES, SIDE)
    importance = FAMILY.importance(model, [(pictures(4, SIDE, 2), torch.arange(4))])
    assert importance.blocks == ((0, 0), (0, 0), (0, 0, 0))
    assert all(scores.isfinite().all() for scores in importance.channels.values())
    assert importance.channels["stage2/rest"].min() > 0
    subnet = FAMILY.whole(SHAPE)
    for action in (Action("drop block", 2, 2), Action("narrow", 1), Action("narrow", 2)):
        assert action in FAMILY.actions(subnet, importance)
        subnet = FAMILY.apply(subnet, action, importance)
    slim = FAMILY.inherit(model, subnet, importance, CLASSES, SIDE)
    assert slim(pictures(2, SIDE, 3)).isfinite().all()


def test_parts_of_the_smallest_zoo_model() -> None:
    shape = SHViTShape((128, 224, 320), (2, 4, 5), (0, 48, 68))
    assert FAMILY.parts(shape, 224, 1000) == {
        Part("shvit", "stem", 224, (128,)): 1,
        Part("shvit", "block", 14, (128, 0)): 3,
        Part("shvit", "merge", 14, (128, 224)): 1,
        Part("shvit", "block", 7, (224, 0)): 2,
        Part("shvit", "block", 7, (224, 48)): 4,
        Part("shvit", "merge", 7, (224, 320)): 1,
        Part("shvit", "block", 4, (320, 0)): 1,
        Part("shvit", "block", 4, (320, 68)): 5,
        Part("shvit", "head", 4, (320, 1000, 1)): 1,
    }


def test_stages_of_one_width_still_halve() -> None:
    model = SHViTShape((32, 32, 32), (1, 1, 1), (0, 8, 8)).build(5, SIDE)
    assert all(len(stage.downsample) == 5 for stage in model.stages[1:])
    assert model.stages(model.patch_embed(pictures(1, 128, 0))).shape == (1, 32, 2, 2)


def test_another_source_is_refused(source: SHViT, importance: Importance) -> None:
    larger = replace(SHAPE, widths=(48, 48, 64))
    with pytest.raises(SlimError, match="cannot choose"):
        FAMILY.inherit(source, FAMILY.whole(larger), importance, CLASSES, SIDE)
    with pytest.raises(SlimError, match="has no blocks"):
        deeper = Subnet(replace(SHAPE, depths=(3, 2, 3)), ((0, 1, 2), (0, 1), (0, 1, 2)))
        FAMILY.inherit(source, deeper, importance, CLASSES, SIDE)
    with pytest.raises(SlimError, match="no scores of"):
        FAMILY.inherit(source, FAMILY.whole(SHAPE), Importance(((), (), ())), CLASSES, SIDE)
    with pytest.raises(SlimError, match="expected an SHViT to slim, got Linear"):
        FAMILY.importance(nn.Linear(2, 2), [])
    with pytest.raises(SlimError, match="and heads of"):
        FAMILY.inherit(source, FAMILY.whole(replace(SHAPE, heads=2)), importance, CLASSES, SIDE)

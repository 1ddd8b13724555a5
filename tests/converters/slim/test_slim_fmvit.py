"""Slimmed FMViTs against the whole network with zeros for what was removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import error_over_spread, pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Subnet
from converters.slim.families.fmvit_branches import cut_branches
from converters.slim.families.fmvit_spaces import kept_of
from converters.slim.families.registry import family_of
from converters.slim.slicing import settle_statistics
from edgevit.models import ModelError, create_model
from edgevit.models.fmvit import CONV, MIX, FMViT, FMViTShape, MultiGroupConv

SHAPE = FMViTShape(16, (48, 64, 128, 192), ((CONV,), (CONV, MIX), (CONV, MIX, MIX), (MIX, CONV)))
SIDE, CLASSES = 64, 10
FAMILY = family_of("fmvit")


@pytest.fixture(scope="module")
def source() -> FMViT:
    model = randomise(SHAPE.build(CLASSES, SIDE), 0)
    return settle_batch_norm(model, pictures(6, SIDE, 1))


@pytest.fixture(scope="module")
def importance(source: FMViT) -> Importance:
    return FAMILY.importance(source, [(pictures(4, SIDE, 2), torch.arange(4))])


def only(kept: Tensor, channels: int) -> Tensor:
    mask = torch.zeros(channels)
    mask[kept] = 1
    return mask


def masked(source: FMViT, subnet: Subnet, kept: dict[str, Tensor]) -> nn.Module:
    """The source where removed channels are set to zero on their way, by hooks."""
    model = copy.deepcopy(source)
    shape = source.shape

    def before(module: nn.Module, mask: Tensor) -> None:
        module.register_forward_pre_hook(
            lambda _, x: x[0] * mask.view(1, -1, *[1] * (x[0].dim() - 2))
        )

    def after(module: nn.Module, mask: Tensor) -> None:
        module.register_forward_hook(lambda _, x, y: y * mask[:, None, None])

    before(model.stem[2], only(kept["stem"], shape.stem_dim))
    for s, (stage, width) in enumerate(zip(model.stages, shape.widths, strict=True)):
        own = only(kept[f"stage{s}"], width)
        after(stage[0] if s else model.stem[2], own)
        for b in range(len(shape.kinds[s])):
            block, path = stage[b + 1], f"stages.{s}.{b + 1}"
            if b not in subnet.blocks[s]:
                stage[b + 1] = nn.Identity()
                continue
            before(block.mlp.fc2, only(kept[f"{path}.mlp.fc1"], 2 * width))
            after(block.mlp, own)
            if shape.kinds[s][b] == CONV:
                before(block.mixer[2], own)
                after(block.mixer, own)
                continue
            low = only(kept[f"{path}.low"], block.attention.proj.branches[0].conv.out_channels)
            after(block.low, low)
            after(block.attention.shrink, low)
            before(block.attention.proj, only(kept[f"{path}.attention/values"], len(low)))
            after(block.attention.proj, low)
            groups = [only(kept[f"{path}.high.{i}"], group.mix.skip.num_features)
                      for i, group in enumerate(block.high)]  # fmt: skip
            before(block.blend, torch.cat([low, *groups]))
            after(block.blend, own)
    before(model.head, only(kept["stage3"], shape.widths[3]))
    return model


WHOLE = SHAPE.kinds
ALL = ((0,), (0, 1), (0, 1, 2), (0, 1))
SUBNETS = {
    "fewer blocks": Subnet(
        replace(SHAPE, kinds=((CONV,), (MIX,), (CONV, MIX), (CONV,))), ((0,), (1,), (0, 2), (1,))
    ),
    "narrow stem": Subnet(FMViTShape(8, (32, 64, 128, 192), WHOLE), ALL),
    "a head less": Subnet(FMViTShape(16, (48, 64, 96, 128), WHOLE), ALL),
    "blend as wide as its stage": Subnet(FMViTShape(16, (48, 64, 128, 160), WHOLE), ALL),
    "all of it": Subnet(
        FMViTShape(12, (32, 32, 64, 96), ((CONV,), (CONV,), (MIX,), (MIX, CONV))),
        ((0,), (0,), (2,), (0, 1)),
    ),
}


@pytest.mark.parametrize("name", SUBNETS)
@torch.no_grad()
def test_a_narrow_network_equals_the_source_with_zeros(
    source: FMViT, importance: Importance, name: str
) -> None:
    subnet = SUBNETS[name]
    got = FAMILY.inherit(source, subnet, importance, CLASSES, SIDE)
    want = masked(source, subnet, kept_of(SHAPE, subnet.shape, subnet.blocks, importance))
    images = pictures(4, SIDE, 3)
    spread = (want(images).amax(0) - want(images).amin(0)).max()
    assert spread > 0.05
    assert (got(images) - want(images)).abs().max() <= 2e-5 * spread
    assert (source(images) - want(images)).abs().max() > 0.01 * spread


def small_and_masked(
    channels: tuple[int, int], kept: tuple[list[int], list[int]], spoil: Callable | None = None
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A cut convolution, its inputs, what it gives, and what the whole one gives with zeros."""
    whole = randomise(MultiGroupConv(*channels), 3).eval()
    with torch.no_grad():
        if spoil is not None:
            spoil(whole)
        inputs, outputs = map(torch.tensor, kept)
        state = {f"x.{name}": value for name, value in whole.state_dict().items()}
        found = cut_branches(state, "x", inputs, outputs)
        small = MultiGroupConv(len(inputs), len(outputs)).eval()
        missing = small.load_state_dict({k[2:]: v for k, v in found.items()}, strict=False)
        assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
        assert not missing.unexpected_keys
        x = torch.randn(64, channels[0], 3, 3, generator=torch.Generator().manual_seed(1))
        zeros = x * only(inputs, channels[0])[:, None, None]
        return small, x[:, inputs], small(x[:, inputs]), whole(zeros)[:, outputs]


EVEN, ODD = list(range(0, 16, 2)), list(range(1, 16, 2))


@pytest.mark.parametrize(
    ("channels", "inputs", "outputs"),
    [
        ((16, 16), list(range(16)), list(range(16))),
        ((16, 16), EVEN, EVEN),
        ((16, 16), EVEN, ODD),  # no input is where the norm beside wants it
        ((16, 16), list(range(8)), list(range(4, 12))),  # other groups
        ((16, 16), list(range(12)), EVEN),  # no norm beside any more
        ((16, 24), [0, 1, 2, 3, 8, 9, 10, 11], list(range(8))),  # a norm beside that was not there
        ((24, 16), list(range(20)), [0, 3, 5, 15]),
    ],
)
def test_cut_branches_are_exact(
    channels: tuple[int, int], inputs: list[int], outputs: list[int]
) -> None:
    _, _, got, want = small_and_masked(channels, (inputs, outputs))
    assert error_over_spread(got, want) <= 2e-6


def test_a_silent_dense_branch_takes_what_the_others_lose() -> None:
    def silence(module: MultiGroupConv) -> None:
        module.branches[0].bn.weight.zero_()

    kept = list(range(8)), list(range(4, 12))
    _, _, got, want = small_and_masked((16, 16), kept, silence)
    assert error_over_spread(got, want) <= 2e-6


def test_settling_statistics_keeps_what_goes_over() -> None:
    """All inputs, half of the outputs: the grouped branch loses most of its weights."""
    small, x, got, want = small_and_masked((64, 64), (list(range(64)), list(range(16, 48))))
    assert error_over_spread(got, want) <= 2e-6
    settled = copy.deepcopy(small)
    # The whole one's statistics are made up; those of the same inputs are its measure.
    whole = randomise(MultiGroupConv(64, 64), 3)
    settle_statistics(whole, [x])
    state = {f"x.{name}": value for name, value in whole.state_dict().items()}
    found = cut_branches(state, "x", torch.arange(64), torch.arange(16, 48))
    settled.load_state_dict({k[2:]: v for k, v in found.items()}, strict=False)
    with torch.no_grad():
        before = settled(x)
        settle_statistics(settled, [x])
        assert error_over_spread(settled(x), before) <= 0.1
        assert error_over_spread(before, whole(x)[:, 16:48]) <= 2e-6


def test_blocks_need_not_repeat() -> None:
    assert create_model("fmvit_t").shape == FMViTShape(
        16, (32, 64, 128, 192),
        ((CONV, CONV), (CONV, CONV, MIX), (CONV, CONV, MIX) * 2, (CONV, MIX) * 2),
    )  # fmt: skip
    assert isinstance(SHAPE.build(3, 64), FMViT)
    with pytest.raises(ModelError, match="multiple of 32"):
        SHAPE.build(3, 48)
    with pytest.raises(ValueError, match="64 channels or more, got 32"):
        replace(SHAPE, widths=(48, 32, 128, 192))


def test_a_stage_without_mixing_blocks_may_be_narrower(importance: Importance) -> None:
    subnet = FAMILY.whole(SHAPE)
    assert Action("narrow", 1) not in FAMILY.actions(subnet, importance)
    with pytest.raises(SlimError, match="cannot narrow in stage 2"):
        FAMILY.apply(subnet, Action("narrow", 1), importance)
    subnet = FAMILY.apply(subnet, Action("drop block", 1, 1), importance)
    assert subnet.shape.kinds[1] == (CONV,)
    assert Action("narrow", 1) in FAMILY.actions(subnet, importance)
    assert FAMILY.apply(subnet, Action("narrow", 1), importance).shape.widths[1] == 32


def test_parts_by_hand() -> None:
    assert FAMILY.parts(SHAPE, 64, 10) == {
        Part("fmvit", "stem", 64, (16, 48)): 1,
        Part("fmvit", "cfb", 16, (48,)): 1,
        Part("fmvit", "downsample", 16, (48, 64)): 1,
        Part("fmvit", "cfb", 8, (64,)): 1,
        Part("fmvit", "fmb", 8, (64, 4)): 1,
        Part("fmvit", "downsample", 8, (64, 128)): 1,
        Part("fmvit", "cfb", 4, (128,)): 1,
        Part("fmvit", "fmb", 4, (128, 2)): 2,
        Part("fmvit", "downsample", 4, (128, 192)): 1,
        Part("fmvit", "fmb", 2, (192, 1)): 1,
        Part("fmvit", "cfb", 2, (192,)): 1,
        Part("fmvit", "head", 2, (192, 10)): 1,
    }


def test_another_source_is_refused_here_too(source: FMViT, importance: Importance) -> None:
    swapped = replace(SHAPE, kinds=((CONV,), (MIX, CONV), (CONV, MIX, MIX), (MIX, CONV)))
    with pytest.raises(SlimError, match="is not of the blocks"):
        FAMILY.inherit(source, Subnet(swapped, ALL), importance, CLASSES, SIDE)
    with pytest.raises(SlimError, match="no scores of stem"):
        FAMILY.inherit(source, FAMILY.whole(SHAPE), Importance(((),) * 4), CLASSES, SIDE)
    with pytest.raises(SlimError, match="expected an FMViT to slim, got Linear"):
        FAMILY.importance(nn.Linear(2, 2), [])

"""What families that are slimmed without a supernet have in common: SHViT and FMViT."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from converters.reparam import apply_rules
from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Family, Importance, Part, Subnet
from converters.slim.families.registry import family_of
from converters.slim.families.trained import grid, least_important
from converters.slim.slicing import settle_statistics
from edgevit.data import open_dataset
from edgevit.models.fmvit import CONV, MIX, FMViTShape
from edgevit.models.shapes import Shape, family_of_shape, shape_as_json, shape_from_json
from edgevit.models.shvit import SHViTShape

SIDE, CLASSES, STEPS = 64, 10, 80
SHAPES: dict[str, Shape] = {
    "shvit": SHViTShape((32, 48, 64), (2, 2, 3), (0, 12, 16)),
    "fmvit": FMViTShape(16, (32, 64, 128, 96), ((CONV, CONV), (CONV, MIX), (MIX, CONV), (MIX,))),
}


@dataclass(frozen=True)
class Case:
    """A family with a network of its own, random but with nothing silent, and its importance."""

    family: Family
    shape: Shape
    source: nn.Module
    importance: Importance

    def inherit(self, subnet: Subnet) -> nn.Module:
        return self.family.inherit(self.source, subnet, self.importance, CLASSES, SIDE)


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request: pytest.FixtureRequest) -> Case:
    family, shape = family_of(request.param), SHAPES[request.param]
    source = settle_batch_norm(randomise(shape.build(CLASSES, SIDE), 0), pictures(6, SIDE, 1))
    batches = [(pictures(4, SIDE, 2), torch.arange(4))]
    return Case(family, shape, source, family.importance(source, batches))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def test_the_whole_subnet_is_the_source(case: Case) -> None:
    subnet = case.family.whole(case.shape)
    same = case.inherit(subnet)
    assert same is not case.source and not same.training
    images = pictures(3, SIDE, 4)
    assert torch.equal(same(images), case.source(images))
    state = case.source.state_dict()
    for name, value in same.state_dict().items():
        assert value.equal(state[name]) or not value.is_floating_point()
    assert case.family.scaled(case.shape, 1.0) == subnet


def test_shapes_are_values_and_modules_tell_theirs(case: Case) -> None:
    assert case.source.shape == case.shape
    assert family_of_shape(case.shape) == case.family.name
    assert shape_from_json(case.family.name, shape_as_json(case.shape)) == case.shape
    assert case.family.supernet(case.shape, CLASSES, SIDE).shape == case.shape


def test_every_way_down_gets_smaller_and_runs(case: Case) -> None:
    """Every action once, and random ones until there are none: the smallest network."""
    family, rng = case.family, np.random.default_rng(0)
    images, subnet, used = pictures(1, SIDE, 4), case.family.whole(case.shape), set()
    while actions := family.actions(subnet, case.importance):
        fresh = [action for action in actions if (action.kind, action.stage) not in used]
        action = (fresh or actions)[int(rng.integers(len(fresh or actions)))]
        smaller = family.apply(subnet, action, case.importance)
        assert count(smaller.shape.build(CLASSES, SIDE)) < count(subnet.shape.build(CLASSES, SIDE))
        if (action.kind, action.stage) not in used:
            module = case.inherit(smaller)
            assert module.shape == smaller.shape and not module.training
            assert module(images).isfinite().all()
        used.add((action.kind, action.stage))
        subnet = smaller
    stages = range(len(subnet.blocks))
    assert {kind for kind, _ in used} == {"drop block", "narrow"}
    assert all(len(kept) == 1 for kept in subnet.blocks)
    assert case.inherit(subnet)(images).isfinite().all()
    for stage in stages:
        for action in (Action("narrow", stage), Action("drop block", stage, 0)):
            with pytest.raises(SlimError, match="cannot"):
                family.apply(subnet, action, case.importance)
    for action in (Action("narrow", 7), Action("drop block", 7, 0), Action("widen", 0)):
        with pytest.raises(SlimError, match="cannot"):
            family.apply(family.whole(case.shape), action, case.importance)


def test_the_least_important_block_goes() -> None:
    importance = Importance(((3.0, 1.0, 2.0, 1.0),))
    assert least_important(((0, 1, 2, 3),), 0, importance) == 3
    assert least_important(((0, 1, 2),), 0, importance) == 1
    assert least_important(((0, 2),), 0, importance) == 2


def test_grids() -> None:
    assert grid(64, 16, 16) == (16, 32, 48, 64)
    assert grid(308, 16, 272) == (272, 288, 304, 308)
    assert grid(16, 16, 16) == (16,)
    assert grid(8, 16, 16) == (8,)


def test_random_subnets_build_and_run(case: Case) -> None:
    images, rng, seen = pictures(1, SIDE, 4), np.random.default_rng(1), Counter()
    whole = count(case.source)
    for index in range(40):
        subnet = case.family.random(case.shape, rng)
        seen.update([len(subnet.blocks[0]), f"width {subnet.shape.widths[-1]}"])
        if index < 6:
            module = case.inherit(subnet)
            assert count(module) <= whole
            assert module(images).isfinite().all()
    assert min(seen[1], seen[2]) > 8
    assert len([key for key in seen if str(key).startswith("width")]) > 1
    again = case.family.random(case.shape, np.random.default_rng(5))
    assert again == case.family.random(case.shape, np.random.default_rng(5))


def test_uniform_scaling_keeps_the_depths(case: Case) -> None:
    half = case.family.scaled(case.shape, 0.5)
    assert half.blocks == case.family.whole(case.shape).blocks
    for width, full in zip(half.shape.widths, case.shape.widths, strict=True):
        assert abs(width - full / 2) <= 16 or width == 64
    assert count(case.inherit(half)) < count(case.source)
    for factor in (0.0, 1.5):
        with pytest.raises(SlimError, match="above 0 and at most 1"):
            case.family.scaled(case.shape, factor)


def test_parts_add_up(case: Case) -> None:
    subnets = [case.family.random(case.shape, np.random.default_rng(i)) for i in range(3)]
    for subnet in (case.family.whole(case.shape), *subnets):
        found = case.family.parts(subnet.shape, SIDE, CLASSES)
        total = sum(times * count(case.family.module(part)) for part, times in found.items())
        assert total == count(subnet.shape.build(CLASSES, SIDE))


@pytest.mark.parametrize("side", [64, 96])
def test_parts_are_at_sides_that_the_network_has(case: Case, side: int) -> None:
    sides: set[int] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, args: sides.add(args[0].shape[-1]))
        for module in case.source.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        case.source(pictures(1, side, 4))
    for hook in hooks:
        hook.remove()
    found = {part.side for part in case.family.parts(case.shape, side, CLASSES)}
    assert found <= sides and {side, min(sides)} <= found | {1}


def test_probes_differ_in_parts_alone(case: Case) -> None:
    for part in case.family.parts(case.shape, SIDE, CLASSES):
        probe = case.family.probe(part)
        assert count(probe.long) - count(probe.short) == probe.times * count(
            case.family.module(part)
        )
        assert probe.side == part.side and not probe.short.training
        noise = torch.randn(8, 3, part.side, part.side, generator=torch.Generator().manual_seed(0))
        for network in (probe.short, probe.long):
            with torch.no_grad():
                logits = network(noise)
            assert logits.dim() == 2 and logits.abs().max() < 1e3
            assert (logits.amax(0) - logits.amin(0)).max() > 1e-2
    state = torch.get_rng_state()
    again = case.family.probe(part)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, probe.long.parameters(), again.long.parameters()))
    with pytest.raises(SlimError, match="has no part 'pool'"):
        case.family.probe(Part(case.family.name, "pool", 8, (32,)))


# Where a channel is read: (module, index of the channel there); written out by hand.
READERS: dict[str, dict[str, tuple[int, list[tuple[str, int]]]]] = {
    "shvit": {
        "stage1/rest": (5, [
            ("stages.1.downsample.4.m.pw1", 17), ("stages.2.downsample.1.m.pw1", 17),
            ("stages.2.downsample.2.conv1", 17),
            *((f"stages.1.blocks.{b}.{m}", 17) for b in (0, 1)
              for m in ("ffn.m.pw1", "mixer.m.proj.1")),
        ]),
        "stage2/attended": (3, [
            ("stages.2.downsample.4.m.pw1", 3), ("head.l", 3),
            *((f"stages.2.blocks.{b}.{m}", 3) for b in (0, 1, 2)
              for m in ("ffn.m.pw1", "mixer.m.qkv")),
        ]),
        "stages.2.blocks.1.mixer.m/values": (2, [("stages.2.blocks.1.mixer.m.proj.1", 2)]),
        "stages.1.downsample.2.conv1": (9, [
            ("stages.1.downsample.2.se.fc1", 9), ("stages.1.downsample.2.conv3", 9)]),
        "patch_embed.2": (1, [("patch_embed.4", 1)]),
    },
    "fmvit": {
        "stage3": (40, [
            ("head", 40), *((f"stages.3.1.{m}.branches.{b}", 40) for b in (0, 1)
              for m in ("low", "high.0.proj", "high.1.proj", "high.2.proj", "mlp.fc1"))]),
        "stages.2.1.low": (33, [
            (f"stages.2.1.{m}.branches.{b}", 33) for b in (0, 1)
            for m in ("attention.q", "attention.k", "attention.v", "blend")]),
        "stages.2.1.high.1": (7, [
            (f"stages.2.1.blend.branches.{b}", 64 + 20 + 7) for b in (0, 1)]),
        "stages.2.2.mlp.fc1": (77, [(f"stages.2.2.mlp.fc2.branches.{b}", 77) for b in (0, 1)]),
        "stages.2.1.attention/heads": (1, [
            (f"stages.2.1.attention.proj.branches.{b}", c) for b in (0, 1) for c in range(32, 64)]),
        "stem": (6, [("stem.2", 6)]),
    },
}  # fmt: skip


def faded(source: nn.Module, places: list[tuple[str, int]], by: float) -> nn.Module:
    """The network where a channel is multiplied by 1 - by wherever it is read."""
    model = copy.deepcopy(source).double()

    def fade(channel: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor]) -> Tensor:
            gain = torch.ones(args[0].shape[1], dtype=torch.float64)
            gain[channel] -= by
            return args[0] * gain.view(1, -1, *[1] * (args[0].dim() - 2))

        return hook

    for path, channel in places:
        model.get_submodule(path).register_forward_pre_hook(fade(channel))
    return model


def test_channel_scores_equal_finite_differences(case: Case) -> None:
    images, labels = pictures(4, SIDE, 2), torch.arange(4)
    assert set(READERS[case.family.name]) <= set(case.importance.channels)
    for space, (index, places) in READERS[case.family.name].items():
        with torch.no_grad():
            up, down = (
                F.cross_entropy(faded(case.source, places, by)(images.double()), labels)
                for by in (1e-6, -1e-6)
            )
        want = float((up - down) / 2e-6) ** 2
        got = float(case.importance.channels[space][index])
        assert got == pytest.approx(want, rel=1e-2, abs=1e-9), space


def test_every_channel_has_a_score(case: Case) -> None:
    channels = case.importance.channels
    streams = [name for name in channels if name.startswith("stage") and "." not in name]
    total = sum(len(channels[name]) for name in streams)
    assert total == sum(case.shape.widths)
    assert all(scores.isfinite().all() and scores.max() > 0 for scores in channels.values())
    assert all(score > 0 for row in case.importance.blocks for score in row)


def folded_size(module: nn.Module, inputs: Tensor) -> int:
    """Numbers in the weights of a module that has been exported and folded."""
    with torch.no_grad():
        folded = torch.export.export(module.eval(), (inputs,)).module()
        apply_rules(folded)
    return sum(value.numel() for value in folded.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        Part("shvit", "block", 4, (32, 8)),
        Part("shvit", "merge", 4, (32, 48)),
        Part("shvit", "head", 2, (32, 10, 1)),
        Part("fmvit", "downsample", 4, (32, 64)),
        Part("fmvit", "cfb", 4, (32,)),
        Part("fmvit", "head", 2, (32, 10)),
    ],
    ids=str,
)
def test_folding_leaves_the_same_part_in_both_probes(part: Part) -> None:
    """Nothing around the part folds into it in one network and not in the other."""
    family = family_of(part.family)
    probe, picture = family.probe(part), torch.randn(1, 3, part.side, part.side)
    sizes = [folded_size(network, picture) for network in (probe.short, probe.long)]
    alone = folded_size(family.module(part), torch.randn(1, part.dims[0], part.side, part.side))
    assert sizes[1] - sizes[0] == probe.times * alone


def digits(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Normalised digits of 32 pixels."""
    data = open_dataset("digits", split, size=32)
    rows = [data[i] for i in range(count)]
    images = torch.stack([torch.from_numpy(picture) for picture, _ in rows])
    return images.permute(0, 3, 1, 2) / 128 - 1, torch.tensor([label for _, label in rows])


@pytest.fixture(scope="module")
def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return digits("train", 640), digits("test", 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_trained_network_keeps_most_of_its_accuracy(name: str, data: Any) -> None:
    """One action of each kind on a network that knows digits, without training it again."""
    family, shape = family_of(name), SHAPES[name]
    (images, labels), (tests, wanted) = data
    torch.manual_seed(0)
    source = shape.build(CLASSES, 32).train()
    optimizer = torch.optim.AdamW(source.parameters(), 4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        chosen = torch.arange(64) + 64 * (step % 10)
        loss = F.cross_entropy(source(images[chosen]), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    def top1(module: nn.Module) -> float:
        with torch.no_grad():
            return float((module.eval()(tests).argmax(1) == wanted).float().mean())

    before = top1(source)
    assert before > 0.8
    importance = family.importance(source, [(images[:128], labels[:128])])
    opposite = Importance(importance.blocks, {k: -v for k, v in importance.channels.items()})
    subnet = family.whole(shape)
    for action in (Action("narrow", 2), family.actions(subnet, importance)[0]):
        subnet = family.apply(subnet, action, importance)
        slim = family.inherit(source, subnet, importance, CLASSES, 32)
        settle_statistics(slim, images[:320].split(64))
        assert top1(slim) > 0.9 * before, action
    worst = family.inherit(source, subnet, opposite, CLASSES, 32)
    settle_statistics(worst, images[:320].split(64))
    assert top1(slim) > top1(worst)

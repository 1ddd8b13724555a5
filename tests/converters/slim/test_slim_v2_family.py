"""EfficientFormerV2 as a family that can be slimmed: parts, probes, actions, weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import error_over_spread, pictures
from slim_v2_nets import (
    CLASSES,
    FAMILY,
    SHAPE,
    SIDE,
    WHOLE,
    random_importance,
    random_network,
    random_supernet,
    subnets,
)
from torch import nn

from converters.slim.candidates import smallest as smallest_by_actions
from converters.slim.candidates import unknown_importance
from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Subnet
from converters.slim.families.efficientformerv2 import (
    DROP_ATTENTION,
    DROP_BLOCK,
    NARROW_FFN,
    NARROW_STAGE,
)
from converters.slim.families.efficientformerv2_parts import module_of
from converters.slim.families.efficientformerv2_space import channels, check_part, grid
from converters.slim.families.registry import family_of
from converters.slim.slicing import strongest
from edgevit.models import create_model
from edgevit.models.efficientformerv2 import EfficientFormerV2, LayerScale

KINDS = {
    "stem": (64, (16,)),
    "ffn": (8, (24, 3)),
    "downsample": (16, (16, 24)),
    "attention_downsample": (4, (24, 32)),
    "attention": (2, (32,)),
    "halved_attention": (4, (24,)),
    "head": (2, (32, 10)),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def part_of(kind: str) -> Part:
    return Part("efficientformerv2", kind, *KINDS[kind])


@pytest.mark.parametrize("shape", [SHAPE, *(s.shape for s in subnets(3, seed=1))], ids=repr)
@pytest.mark.parametrize("side", [32, 64])
def test_parts_add_up_to_the_network(shape, side: int) -> None:
    parts = FAMILY.parts(shape, side, CLASSES)
    assert sum(count(module_of(part)) * n for part, n in parts.items()) == count(
        shape.build(CLASSES, side)
    )
    assert {part.family for part in parts} == {"efficientformerv2"}


def test_parts_of_a_zoo_model_by_hand() -> None:
    with torch.device("meta"):
        shape = create_model("efficientformerv2_s0").shape
    found = {(p.kind, p.side, p.dims): n for p, n in FAMILY.parts(shape, 224, 1000).items()}
    assert found == {
        ("stem", 224, (32,)): 1,
        ("ffn", 56, (32, 4)): 2,
        ("downsample", 56, (32, 48)): 1,
        ("ffn", 28, (48, 4)): 2,
        ("downsample", 28, (48, 96)): 1,
        ("halved_attention", 14, (96,)): 2,
        ("ffn", 14, (96, 4)): 3,
        ("ffn", 14, (96, 3)): 3,
        ("attention_downsample", 14, (96, 176)): 1,
        ("attention", 7, (176,)): 2,
        ("ffn", 7, (176, 4)): 2,
        ("ffn", 7, (176, 3)): 2,
        ("head", 7, (176, 1000)): 1,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_differs_in_times_parts(kind: str) -> None:
    part = part_of(kind)
    probe = FAMILY.probe(part)
    assert probe.side == part.side and probe.times >= 1
    assert count(probe.long) - count(probe.short) == probe.times * count(module_of(part))
    images = pictures(6, probe.side, seed=2)
    with torch.no_grad():
        short, long = probe.short(images), probe.long(images)
    for logits in (short, long):  # alive, and not growing with the depth
        assert logits.ndim == 2 and 1e-2 < logits.std(0).mean() < 10
    for module in probe.long.modules():
        assert not module.training
        if isinstance(module, LayerScale):
            assert torch.equal(module.gamma, torch.ones_like(module.gamma))
    copies = list(probe.long.parts)
    assert len(copies) == 1 + probe.times
    largest = [max(copy.parameters(), key=torch.numel) for copy in copies]
    assert not any(torch.equal(largest[0], other) for other in largest[1:])


def test_probes_are_the_same_each_time_and_leave_torchs_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (FAMILY.probe(part_of("ffn")).long.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SlimError, match=r"has no part .*expected ffn, attention"):
        FAMILY.probe(Part("efficientformerv2", "pool_block", 8, (16,)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stem", "halved_attention", "attention_downsample", "head"])
def test_probes_convert_and_keep_every_copy(kind: str, tmp_path) -> None:
    """Folding must not merge what lies side by side; finish() raises for a wrong artefact."""
    import onnx

    from converters.slim.cost.bundles import finish, prepare, source_of

    probe = FAMILY.probe(part_of(kind))
    alone = FAMILY.probe(part_of(kind)).short.parts[0]
    sizes = {}
    for name, network in (("short", probe.short), ("long", probe.long)):
        made = prepare(source_of(name, network, probe.side, "efficientformerv2", "random"))
        folder = tmp_path / name
        folder.mkdir()
        finish(made, "onnx", "fp32", folder)
        graph = onnx.load(folder / "model.onnx").graph
        sizes[name] = sum(math.prod(value.dims) for value in graph.initializer)
    added = (sizes["long"] - sizes["short"]) / probe.times
    # BatchNorms and the second head fold away; biases are spread over all pairs of positions.
    pairs = 8 * probe.side**4 if "attention" in kind else 0
    assert 0.4 * count(alone) < added <= count(alone) + pairs


def test_actions_of_the_whole_network() -> None:
    importance = random_importance(seed=3)
    actions = FAMILY.actions(WHOLE, importance)
    assert len(set(actions)) == len(actions)
    for stage in range(4):
        here = {action.kind: action for action in actions if action.stage == stage}
        scores = importance.blocks[stage]
        assert here[DROP_BLOCK].block == scores.index(min(scores))
        assert NARROW_STAGE in here and NARROW_FFN in here
        assert (DROP_ATTENTION in here) == (stage >= 2)


def test_the_ffn_that_loses_least_is_narrowed() -> None:
    importance = random_importance(seed=4)
    scores = dict(importance.channels)
    scores["hidden2.0"] = torch.ones(48)
    scores["hidden2.1"] = torch.cat([torch.full((24,), 0.5), torch.full((48,), 9.0)])
    scores["hidden2.2"] = torch.ones(48)
    actions = FAMILY.actions(WHOLE, Importance(importance.blocks, scores))
    assert Action(NARROW_FFN, 2, 1) in actions  # its last 24 score 12, the others' 24


def test_what_each_action_does() -> None:
    importance = random_importance(seed=5)
    by_kind = {
        (action.kind, action.stage): FAMILY.apply(WHOLE, action, importance)
        for action in FAMILY.actions(WHOLE, importance)
    }
    narrow = by_kind[NARROW_STAGE, 3]
    assert narrow == Subnet(replace(SHAPE, widths=(16, 24, 24, 24)), WHOLE.blocks)
    silent = by_kind[DROP_ATTENTION, 2]
    assert silent == Subnet(replace(SHAPE, attention_depths=(1, 1)), WHOLE.blocks)
    weakest = min(range(3), key=lambda block: importance.blocks[2][block])
    shorter = by_kind[DROP_BLOCK, 2]
    assert shorter.blocks[2] == tuple(b for b in range(3) if b != weakest)
    assert shorter.shape.mlp_ratios[2] == tuple(SHAPE.mlp_ratios[2][b] for b in shorter.blocks[2])
    assert shorter.shape.attention_depths == ((1 if weakest else 2), 1)
    assert sum(by_kind[NARROW_FFN, 0].shape.mlp_ratios[0]) == 3


@pytest.mark.parametrize("seed", [6, 7])
def test_every_way_down_ends_at_the_smallest(seed: int) -> None:
    """Each step is a smaller part of the network; at the end no action is left."""
    importance, subnet = random_importance(seed), WHOLE
    generator = torch.Generator().manual_seed(seed)
    parameters = count(subnet.shape.build(CLASSES, SIDE))
    while actions := FAMILY.actions(subnet, importance):
        at = int(torch.randint(len(actions), (), generator=generator))
        subnet = FAMILY.apply(subnet, actions[at], importance)
        check_part(subnet, SHAPE)
        fewer = count(subnet.shape.build(CLASSES, SIDE))
        assert fewer < parameters
        parameters = fewer
    assert subnet.shape.widths == tuple(grid(width)[0] for width in SHAPE.widths)
    assert subnet.shape.mlp_ratios == ((1,),) * 4 and subnet.shape.attention_depths == (0, 0)


def test_the_smallest_is_known_before_anything_is_trained() -> None:
    assert smallest_by_actions(FAMILY, WHOLE).shape.widths == (8, 16, 16, 16)


def test_an_action_that_it_does_not_have_is_refused() -> None:
    importance = unknown_importance(WHOLE)
    for action in (Action(DROP_ATTENTION, 1), Action(DROP_BLOCK, 0, 5), Action("fly", 0)):
        with pytest.raises(SlimError, match="does not have the action"):
            FAMILY.apply(WHOLE, action, importance)


def inherit(source: nn.Module, subnet: Subnet, importance: Importance) -> EfficientFormerV2:
    module = FAMILY.inherit(source, subnet, importance, CLASSES, SIDE)
    assert isinstance(module, EfficientFormerV2) and not module.training
    return module


def test_nothing_removed_is_the_network_itself() -> None:
    source = random_network(seed=8)
    ours = inherit(source, WHOLE, random_importance(seed=9)).state_dict()
    theirs = source.state_dict()
    assert ours.keys() == theirs.keys()
    floats = [name for name in ours if ours[name].is_floating_point()]
    assert all(torch.equal(ours[name], theirs[name]) for name in floats)


@torch.no_grad()
def masked(source: EfficientFormerV2, subnet: Subnet, importance: Importance) -> EfficientFormerV2:
    """Silences in a trained network, in place, what a subnet leaves out: exact by construction.

    A channel of a stream is gone where all that writes it, and all that passes it on by itself,
    writes 0; a hidden one where nothing reads it; a branch where its layer scale is 0.
    """
    kept = {s: strongest(importance.channels[s], n) for s, n in channels(subnet).items()}

    def silence(norm: nn.BatchNorm2d, space: str) -> None:
        gone = torch.ones(len(norm.weight), dtype=torch.bool)
        gone[kept[space]] = False
        norm.weight[gone] = 0
        norm.bias[gone] = 0

    silence(source.stem.conv1.bn, "stem")
    silence(source.stem.conv2.bn, "stage0")
    silence(source.norm, "stage3")
    for index, stage in enumerate(source.stages):
        space = f"stage{index}"
        if index:
            silence(stage.downsample.conv.bn, space)
        if index == 3:
            local = stage.downsample.attn.q.local
            gone = torch.ones(len(local.weight), dtype=torch.bool)
            gone[kept["stage2"]] = False
            local.bias[gone] = 0
            silence(stage.downsample.attn.proj.bn, space)
        attending = subnet.shape.attention_depths[index - 2] if index >= 2 else 0
        for number, block in enumerate(stage.blocks):
            if number not in subnet.blocks[index]:
                block.ls2.gamma.zero_()
            else:
                gone = torch.ones(block.mlp.fc2.conv.in_channels, dtype=torch.bool)
                gone[kept[f"hidden{index}.{number}"]] = False
                block.mlp.fc2.conv.weight[:, gone] = 0
                silence(block.mlp.fc2.bn, space)
            if block.token_mixer is None:
                continue
            if number not in subnet.blocks[index][len(subnet.blocks[index]) - attending :]:
                block.ls1.gamma.zero_()
                continue
            silence(block.token_mixer.proj.bn, space)
            if block.token_mixer.stride_conv is not None:
                silence(block.token_mixer.stride_conv.bn, space)
    return source


@pytest.mark.parametrize("subnet", subnets(6, seed=10), ids=repr)
def test_a_cut_network_is_the_masked_one(subnet: Subnet) -> None:
    """Widths, FFNs, attention and depth at once, by channels in no order."""
    source, importance = random_network(seed=11), random_importance(seed=12)
    images = pictures(4, SIDE, seed=13)
    reference = masked(source, subnet, importance)
    with torch.no_grad():
        assert error_over_spread(
            inherit(source, subnet, importance)(images), reference(images)
        ) <= (1e-5)


def test_what_cannot_be_inherited_is_refused() -> None:
    source, importance = random_network(seed=14), random_importance(seed=15)
    with pytest.raises(SlimError, match="takes a tensor of shape"):
        FAMILY.inherit(source, WHOLE, importance, CLASSES + 1, SIDE)
    with pytest.raises(SlimError, match="expected an EfficientFormerV2, got Linear"):
        FAMILY.inherit(nn.Linear(2, 2), WHOLE, importance, CLASSES, SIDE)
    with pytest.raises(SlimError, match="the channels of stem was not measured"):
        FAMILY.inherit(source, WHOLE, Importance(importance.blocks), CLASSES, SIDE)


def labelled(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    labels = torch.arange(16) % CLASSES
    return [(pictures(16, SIDE, seed), labels)]


def test_a_block_and_a_channel_that_do_nothing_score_nothing() -> None:
    source = random_network(seed=16)
    with torch.no_grad():
        source.stages[2].blocks[1].ls1.gamma.zero_()
        source.stages[2].blocks[1].ls2.gamma.zero_()
        source.stages[1].blocks[0].mlp.fc2.conv.weight[:, 5] = 0
        source.head.weight[:, 7] = source.head_dist.weight[:, 7] = 0
    found = FAMILY.importance(source, labelled(17))
    assert found.blocks[2][1] == 0 and min(found.blocks[2][0], found.blocks[2][2]) > 0
    assert found.channels["hidden1.0"].argmin() == 5 and found.channels["hidden1.0"][5] == 0
    assert {space: len(scores) for space, scores in found.channels.items()} == channels(WHOLE)
    assert Action(DROP_BLOCK, 2, 1) in FAMILY.actions(WHOLE, found)


def test_a_supernets_channels_score_no_less_than_those_after_them() -> None:
    found = FAMILY.importance(random_supernet(seed=18), labelled(19))
    for space, scores in found.channels.items():
        assert (scores.diff() <= 0).all() and scores[0] > 0, space
        assert strongest(scores, len(scores) // 2).tolist() == list(range(len(scores) // 2))
    assert all(score > 0 for stage in found.blocks for score in stage)


def test_the_registry_knows_it() -> None:
    assert family_of("efficientformerv2").name == "efficientformerv2"
    supernet = FAMILY.supernet(SHAPE, CLASSES, SIDE)
    # Every block of the last two stages attends in the supernet, so that the search decides.
    assert supernet.shape == replace(SHAPE, attention_depths=(3, 2))
    assert FAMILY.supernet(supernet.shape, CLASSES, SIDE).shape == supernet.shape

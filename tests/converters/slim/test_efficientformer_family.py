"""EfficientFormer's actions, random and scaled subnets, parts and probes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientformer_tools import CLASSES, FAMILY, POOLING, SHAPE, SIDE, made_up
from torch import nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Subnet
from converters.slim.families.efficientformer_parts import module_of
from converters.slim.families.registry import family_of
from edgevit.models.efficientformer import EfficientFormerShape

SMALLEST = EfficientFormerShape((16, 16, 16, 16), (1, 1, 1, 1), (0, 0, 0, 0))
L1 = EfficientFormerShape((48, 96, 224, 448), (3, 2, 6, 4), (0, 0, 0, 1))
SCORES = Importance(((2.0, 1.0), (0.5, 0.4), (3.0, 1.0, 2.0), (1.0, 5.0, 0.5)))


def size(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_it_is_the_family_of_its_name() -> None:
    assert family_of("efficientformer").name == "efficientformer"


def test_the_actions_of_the_paper() -> None:
    """Widths 16, 32, 32, 48; by hand: stage 2 is weakest in sum of those above 16 channels."""
    whole = FAMILY.whole(SHAPE)
    found = FAMILY.actions(whole, SCORES)
    assert found == [
        Action("drop", 0, 1),
        Action("drop", 1, 1),
        Action("drop", 2, 1),
        Action("drop", 3, 2),
        Action("attention to pooling", 2, 2),
        Action("narrow the weakest", 1),
        Action("narrow", 2),
        Action("narrow", 3),
    ]
    assert str(found[2]) == "drop in stage 3 block 2"
    after = [FAMILY.apply(whole, action, SCORES) for action in found]
    assert [(s.shape.depths, s.shape.attention_depths, s.shape.widths) for s in after] == [
        ((1, 2, 3, 3), (0, 0, 1, 3), (16, 32, 32, 48)),
        ((2, 1, 3, 3), (0, 0, 1, 3), (16, 32, 32, 48)),
        ((2, 2, 2, 3), (0, 0, 1, 3), (16, 32, 32, 48)),
        ((2, 2, 3, 2), (0, 0, 1, 2), (16, 32, 32, 48)),
        ((2, 2, 3, 3), (0, 0, 0, 3), (16, 32, 32, 48)),
        ((2, 2, 3, 3), (0, 0, 1, 3), (16, 16, 32, 48)),
        ((2, 2, 3, 3), (0, 0, 1, 3), (16, 32, 16, 48)),
        ((2, 2, 3, 3), (0, 0, 1, 3), (16, 32, 32, 32)),
    ]
    assert after[2].blocks == ((0, 1), (0, 1), (0, 2), (0, 1, 2))


def test_attention_turns_into_pooling_from_the_front() -> None:
    subnet, places = FAMILY.whole(SHAPE), []
    while pools := [a for a in FAMILY.actions(subnet, SCORES) if a.kind == "attention to pooling"]:
        (action,) = pools
        places.append((action.stage, action.block))
        subnet = FAMILY.apply(subnet, action, SCORES)
    assert places == [(2, 2), (3, 0), (3, 1), (3, 2)]
    assert subnet.shape == replace(SHAPE, attention_depths=(0, 0, 0, 0))


def test_a_dropped_block_is_of_its_kind() -> None:
    """Stage 4 pools once and attends twice: which one goes is seen in the attention depth."""
    whole = FAMILY.whole(POOLING)
    for block, attending in ((0, 2), (1, 1), (2, 1)):
        scores = Importance(
            (*made_up(POOLING).blocks[:3], tuple(float(i != block) for i in range(3)))
        )
        action = next(a for a in FAMILY.actions(whole, scores) if a.kind == "drop" and a.stage == 3)
        smaller = FAMILY.apply(whole, action, scores)
        assert smaller.shape.attention_depths == (0, 0, 0, attending)
        assert smaller.blocks[3] == tuple(i for i in range(3) if i != block)


def test_widths_go_down_to_the_grid() -> None:
    subnet = FAMILY.whole(replace(SMALLEST, widths=(16, 40, 48, 17)))
    widths = [
        FAMILY.apply(subnet, action, made_up(SMALLEST)).shape.widths
        for action in FAMILY.actions(subnet, made_up(SMALLEST))
    ]
    assert widths == [(16, 32, 48, 17), (16, 40, 32, 17), (16, 40, 48, 16)]


@pytest.mark.parametrize("seed", range(4))
def test_every_way_down_is_of_networks_and_ends_at_the_smallest(seed) -> None:
    rng = np.random.default_rng(seed)
    subnet, importance = FAMILY.whole(SHAPE), made_up(SHAPE, seed)
    weight = size(subnet.shape.build(CLASSES, SIDE))
    while actions := FAMILY.actions(subnet, importance):
        action = actions[rng.integers(len(actions))]
        subnet = FAMILY.apply(subnet, action, importance)
        with torch.device("meta"):
            after = subnet.shape.build(CLASSES, SIDE)
        assert size(after) < weight
        weight = size(after)
    assert subnet.shape == SMALLEST
    assert all(len(blocks) == 1 for blocks in subnet.blocks)


@pytest.mark.parametrize(
    "action",
    [
        Action("drop", 0, 2),
        Action("drop", 0, None),
        Action("drop", 7, 0),
        Action("attention to pooling", 3, 0),
        Action("narrow", 0),
        Action("widen", 1),
    ],
)
def test_actions_that_a_subnet_does_not_have(action) -> None:
    with pytest.raises(SlimError, match=f"cannot {action}"):
        FAMILY.apply(FAMILY.whole(SHAPE), action, SCORES)


def test_the_last_block_of_a_stage_stays() -> None:
    with pytest.raises(SlimError, match="cannot drop"):
        FAMILY.apply(FAMILY.whole(SMALLEST), Action("drop", 1, 0), made_up(SMALLEST))


def test_shapes_of_other_families_are_refused() -> None:
    with pytest.raises(SlimError, match="is no shape of an EfficientFormer"):
        FAMILY.whole(object())


def test_random_subnets_are_networks_and_cover_the_space() -> None:
    rng = np.random.default_rng(3)
    found = [FAMILY.random(SHAPE, rng) for _ in range(400)]
    for subnet in found:
        shape = subnet.shape
        assert tuple(map(len, subnet.blocks)) == shape.depths
        assert all(sorted(set(b)) == list(b) and b[-1] < d for b, d in
                   zip(subnet.blocks, SHAPE.depths, strict=True))  # fmt: skip
        # What attends in the subnet attends in the source too.
        for stage in (2, 3):
            attending = subnet.blocks[stage][len(subnet.blocks[stage]) -
                                             shape.attention_depths[stage]:]  # fmt: skip
            assert all(b >= SHAPE.depths[stage] - SHAPE.attention_depths[stage] for b in attending)
    for stage in range(4):
        widths = [s.shape.widths[stage] for s in found]
        assert {*widths} == {*range(16, SHAPE.widths[stage] + 1, 16)}
        depths = [s.shape.depths[stage] for s in found]
        assert {*depths} == {*range(1, SHAPE.depths[stage] + 1)}
        even = 400 / SHAPE.depths[stage]
        assert all(0.7 * even < depths.count(d) < 1.3 * even for d in {*depths})
    assert {s.shape.attention_depths for s in found} >= {(0, 0, 0, n) for n in range(4)} | {
        (0, 0, 1, n) for n in (1, 2, 3)
    }


def test_random_is_a_function_of_the_generator() -> None:
    first, second = (FAMILY.random(SHAPE, np.random.default_rng(5)) for _ in range(2))
    assert first == second != FAMILY.random(SHAPE, np.random.default_rng(6))


@pytest.mark.parametrize(
    ("factor", "widths"),
    [(1.0, (16, 32, 32, 48)), (0.5, (16, 16, 16, 32)), (0.8, (16, 32, 32, 32)), (0.01, (16,) * 4)],
)
def test_scaled_by_hand(factor, widths) -> None:
    assert FAMILY.scaled(SHAPE, factor) == Subnet(
        replace(SHAPE, widths=widths), ((0, 1), (0, 1), (0, 1, 2), (0, 1, 2))
    )


@pytest.mark.parametrize("shape", [SHAPE, POOLING, SMALLEST, L1])
def test_the_parts_have_all_of_the_parameters(shape) -> None:
    with torch.device("meta"):
        parts = FAMILY.parts(shape, SIDE, CLASSES)
        total = sum(n * size(module_of(part)) for part, n in parts.items())
        assert total == size(shape.build(CLASSES, SIDE))
    assert all(n > 0 for n in parts.values())


def test_the_parts_by_hand() -> None:
    assert FAMILY.parts(SHAPE, 64, 10) == {
        Part("efficientformer", "stem", 64, (16,)): 1,
        Part("efficientformer", "pool_block", 16, (16,)): 2,
        Part("efficientformer", "downsample", 16, (16, 32)): 1,
        Part("efficientformer", "pool_block", 8, (32,)): 2,
        Part("efficientformer", "downsample", 8, (32, 32)): 1,
        Part("efficientformer", "pool_block", 4, (32,)): 2,
        Part("efficientformer", "attention_block", 4, (32,)): 1,
        Part("efficientformer", "downsample", 4, (32, 48)): 1,
        Part("efficientformer", "attention_block", 2, (48,)): 3,
        Part("efficientformer", "head", 2, (48, 10)): 1,
    }


PARTS = sorted({*FAMILY.parts(SHAPE, 64, 10)})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.kind}-{part.side}-{part.dims}")
def test_a_probe_differs_in_so_many_of_its_part(part) -> None:
    probe = FAMILY.probe(part)
    assert probe.times >= 4 and probe.side == part.side
    assert size(probe.long) - size(probe.short) == probe.times * size(module_of(part))
    kind = type(module_of(part))
    counts = [sum(type(m) is kind for m in net.modules()) for net in (probe.short, probe.long)]
    assert counts == [1, 1 + probe.times]
    x = torch.randn(3, 3, part.side, part.side)
    for net in (probe.short, probe.long):
        assert not any(module.training for module in net.modules())
        with torch.no_grad():
            logits = net(x)
        assert logits.dim() == 2 and bool(logits.isfinite().all())
        spread = logits.std(0)  # between pictures
        assert float(spread.mean()) > 1e-3 and float(logits.abs().max()) < 100
    again = FAMILY.probe(part).long.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in probe.long.state_dict().items())


def test_no_copy_of_a_probe_is_another_ones() -> None:
    """Else an engine works out both at once."""
    for part in (
        Part("efficientformer", "head", 2, (48, 10)),
        Part("efficientformer", "stem", 64, (16,)),
    ):
        long = FAMILY.probe(part).long
        weights = [next(p for p in copy.parameters() if p.dim() > 1) for copy in long.copies]
        assert all(not torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    "part",
    [
        Part("shvit", "stem", 64, (16,)),
        Part("efficientformer", "tail", 64, (16,)),
        Part("efficientformer", "stem", 64, (16, 32)),
    ],
)
def test_unknown_parts(part) -> None:
    with pytest.raises(SlimError, match="have no part"):
        FAMILY.probe(part)

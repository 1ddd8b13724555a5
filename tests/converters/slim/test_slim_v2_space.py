"""EfficientFormerV2's search space: widths, random subnets, what is part of it and what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from slim_v2_nets import FAMILY, SHAPE, WHOLE, random_network

from converters.slim.errors import SlimError
from converters.slim.families.base import Subnet
from converters.slim.families.efficientformerv2_space import (
    attends,
    channels,
    check_part,
    grid,
    smallest,
    spaces_of,
)


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (8, (8,)),
        (16, (8, 16)),
        (20, (16, 20)),
        (48, (24, 32, 40, 48)),
        (64, (32, 40, 48, 56, 64)),
        (224, (112, 144, 168, 192, 224)),
    ],
)
def test_widths_by_hand(width: int, widths: tuple[int, ...]) -> None:
    assert grid(width) == widths


@pytest.mark.parametrize("width", range(2, 400, 6))
def test_widths_are_few_multiples_of_8_down_to_half(width: int) -> None:
    found = grid(width)
    assert list(found) == sorted(set(found)) and found[-1] == width and len(found) <= 5
    assert all(w % 8 == 0 for w in found[:-1]) and 2 * found[0] >= width
    assert len(found) > 1 or width <= 8


def test_the_smallest_by_hand() -> None:
    least = smallest(SHAPE)
    assert least.shape.widths == (8, 16, 16, 16)
    assert least.shape.mlp_ratios == ((1,),) * 4 and least.shape.attention_depths == (0, 0)
    assert least.blocks == ((1,), (1,), (2,), (1,))


def test_random_subnets_are_parts_and_even() -> None:
    rng = np.random.default_rng(0)
    drawn = [FAMILY.random(SHAPE, rng) for _ in range(600)]
    for subnet in drawn:
        check_part(subnet, SHAPE)
    widths = Counter(subnet.shape.widths[3] for subnet in drawn)
    depths = Counter(len(subnet.blocks[2]) for subnet in drawn)
    pairs = Counter(subnet.blocks[2] for subnet in drawn if len(subnet.blocks[2]) == 2)
    ratios = Counter(subnet.shape.mlp_ratios[2][-1] for subnet in drawn if 1 in subnet.blocks[2])
    assert set(widths) == {16, 24, 32} and set(depths) == {1, 2, 3}
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    for counts in (widths, depths, pairs):
        assert min(counts.values()) > 0.7 * max(counts.values()), counts
    assert set(ratios) == {1, 2, 3}
    assert {subnet.shape.attention_depths for subnet in drawn} == {
        (three, four) for three in range(3) for four in range(2)
    }


def test_channels_are_counted_by_the_blocks_of_the_source() -> None:
    subnet = Subnet(
        replace(
            SHAPE,
            widths=(8, 24, 24, 16),
            mlp_ratios=((2,), (1,), (3, 1), (2,)),
            attention_depths=(1, 1),
        ),
        ((1,), (0,), (1, 2), (1,)),
    )
    check_part(subnet, SHAPE)
    hidden = {"hidden0.1": 16, "hidden1.0": 24, "hidden2.1": 72, "hidden2.2": 24, "hidden3.1": 32}
    streams = {"stem": 4, "stage0": 8, "stage1": 24, "stage2": 24, "stage3": 16}
    assert channels(subnet) == streams | hidden


def test_every_channel_of_a_network_has_its_space() -> None:
    """By the sizes: each space is as long as the dims that lie in it."""
    state = random_network(0).state_dict()
    sizes, spaces = channels(WHOLE), spaces_of(state, SHAPE)
    for name, lies in spaces.items():
        for dim, space in enumerate(lies):
            assert space is None or state[name].shape[dim] == sizes[space], (name, dim)
    seen = {space for lies in spaces.values() for space in lies if space}
    assert seen == set(sizes)
    # What hangs on no space has sizes that no width changes.
    whole = {
        name for name, value in state.items()
        if value.is_floating_point() and not any(spaces.get(name, ()))
    }  # fmt: skip
    kinds = (
        "talking_head",
        "attention_biases",
        "v_local",
        ".q.proj.bn",
        "head",
        ".q.",
        ".k.",
        ".v.",
    )
    assert all(any(kind in name for kind in kinds) for name in whole)


def test_what_is_no_part_is_refused() -> None:
    others = [
        Subnet(replace(SHAPE, widths=(8, 24, 24, 28)), WHOLE.blocks),
        Subnet(replace(SHAPE, widths=(16, 24, 24, 40)), WHOLE.blocks),
        Subnet(replace(SHAPE, mlp_ratios=((3, 2), *SHAPE.mlp_ratios[1:])), WHOLE.blocks),
        Subnet(replace(SHAPE, attention_depths=(3, 1)), WHOLE.blocks),
        Subnet(SHAPE, ((1, 0), *WHOLE.blocks[1:])),
        Subnet(SHAPE, ((0, 2), *WHOLE.blocks[1:])),
        Subnet(SHAPE, ((0,), *WHOLE.blocks[1:])),
    ]
    check_part(WHOLE, SHAPE)
    for subnet in others:
        with pytest.raises(SlimError, match="is no subnet of"):
            check_part(subnet, SHAPE)


def test_who_attends() -> None:
    assert [attends(SHAPE, 2, at) for at in range(3)] == [False, True, True]
    assert [attends(SHAPE, 3, at) for at in range(2)] == [False, True]
    assert not attends(SHAPE, 1, 1)


@pytest.mark.parametrize(
    ("factor", "widths"),
    [(1.0, (16, 24, 24, 32)), (0.75, (8, 16, 16, 24)), (0.1, (8, 16, 16, 16))],
)
def test_scaling_changes_the_widths_alone(factor: float, widths: tuple[int, ...]) -> None:
    scaled = FAMILY.scaled(SHAPE, factor)
    assert scaled == Subnet(replace(SHAPE, widths=widths), WHOLE.blocks)

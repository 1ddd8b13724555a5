"""The shapes of EfficientFormerV2: what they hold, what they refuse, what they build."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import pictures, randomise, settle_batch_norm

from edgevit.models import ModelError, create_model
from edgevit.models.efficientformerv2 import Attention, Downsample, EfficientFormerV2Shape
from edgevit.models.shapes import family_of_shape, shape_as_json, shape_from_json

TINY = EfficientFormerV2Shape((16, 16, 24, 32), ((2, 1), (2,), (2, 3, 1), (1, 2)), (2, 1))
ZOO = tuple(f"efficientformerv2_{size}" for size in ("s0", "s1", "s2", "l"))


@pytest.mark.parametrize("name", ZOO)
def test_a_zoo_models_shape_builds_it_again(name: str) -> None:
    with torch.device("meta"):
        zoo = create_model(name, 7, input_size=64)
        again = zoo.shape.build(7, 64)
    ours, theirs = again.state_dict(), zoo.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in ours)
    assert again.shape == zoo.shape and not again.training and again.input_size == 64


def test_the_rows_of_the_published_table() -> None:
    with torch.device("meta"):
        shape = create_model("efficientformerv2_s1").shape
    assert shape.widths == (32, 48, 120, 224) and shape.attention_depths == (2, 2)
    assert shape.mlp_ratios[2:] == ((4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4))


def test_attention_lies_where_the_shape_says() -> None:
    model = TINY.build(5, 64)
    for stage, attending in enumerate((set(), set(), {1, 2}, {1})):
        blocks = model.stages[stage].blocks
        found = {i for i, b in enumerate(blocks) if isinstance(b.token_mixer, Attention)}
        assert found == attending
    ratios = tuple(
        tuple(b.mlp.mid.conv.out_channels // b.mlp.fc1.conv.in_channels for b in stage.blocks)
        for stage in model.stages
    )
    assert ratios == TINY.mlp_ratios


@pytest.mark.parametrize("widths", [(16, 16, 16, 16), (32, 24, 16, 8)])
def test_stages_of_any_widths_downsample(widths: tuple[int, ...]) -> None:
    model = settle_batch_norm(
        randomise(replace(TINY, widths=widths).build(5, 64), seed=1), pictures(4, 64, 2)
    )
    steps = [isinstance(stage.downsample, Downsample) for stage in model.stages]
    assert steps == [False, True, True, True]
    with torch.no_grad():
        logits = model(pictures(2, 64, 3))
    assert logits.shape == (2, 5) and (logits[0] - logits[1]).abs().max() > 1e-3


def test_json_gives_the_shape_back() -> None:
    family = family_of_shape(TINY)
    assert family == "efficientformerv2"
    assert shape_from_json(family, json.loads(json.dumps(shape_as_json(TINY)))) == TINY


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"widths": [16, 16, 24]}, "four widths"),
        ({"widths": [15, 16, 24, 32]}, "the first even"),
        ({"widths": [16, 16, 24, 0]}, "above 0"),
        ({"widths": [16.0, 16, 24, 32]}, "whole numbers"),
        ({"widths": 16}, "no shape of efficientformerv2"),
        ({"mlp_ratios": [[2], [2], [], [1]]}, "at least 1"),
        ({"mlp_ratios": [[2], [2], [2]]}, "four stages"),
        ({"mlp_ratios": [[0], [2], [2], [1]]}, "at least 1"),
        ({"mlp_ratios": [2, 2, 2, 2]}, "no shape of efficientformerv2"),
        ({"attention_depths": [4, 1]}, r"at most their depths \(3, 2\), got \(4, 1\)"),
        ({"attention_depths": [-1, 1]}, "at most their depths"),
        ({"attention_depths": [1]}, "at most their depths"),
        ({"attention_depths": [True, 1]}, "whole numbers"),
        ({"depths": [1, 1, 1, 1]}, "has the fields"),
    ],
)
def test_impossible_shapes_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shape_from_json("efficientformerv2", shape_as_json(TINY) | changed)

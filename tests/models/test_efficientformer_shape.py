"""EfficientFormers beside the published ones: equal widths, attention in stage 3 or nowhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import error_over_spread, pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from edgevit.models import ModelError, create_model
from edgevit.models.efficientformer import AttentionBlock, EfficientFormerShape, PoolingBlock
from edgevit.models.shapes import family_of_shape, shape_as_json, shape_from_json

L1 = EfficientFormerShape((48, 96, 224, 448), (3, 2, 6, 4), (0, 0, 0, 1))
SMALL = EfficientFormerShape((16, 16, 32, 32), (1, 2, 3, 2), (0, 0, 2, 2))


def built(shape: EfficientFormerShape, size: int = 64) -> nn.Module:
    model = randomise(shape.build(10, size), seed=1)
    return settle_batch_norm(model, pictures(4, size, seed=2))


def blocks_by_hand(model: nn.Module, images: Tensor) -> Tensor:
    """The logits, block by block; which blocks attend is read from their own types."""
    x = model.stem(images)
    for index, stage in enumerate(model.stages):
        if index:
            x = stage.downsample.norm(stage.downsample.conv(x))
        for block in stage.blocks:
            if isinstance(block, PoolingBlock):
                x = block(x)
            elif isinstance(block, AttentionBlock):
                B, C, H, W = x.shape
                tokens = torch.stack([x[..., i, j] for i in range(H) for j in range(W)], 1)
                x = block(tokens).permute(0, 2, 1).reshape(B, C, H, W)
    x = model.norm(x.permute(0, 2, 3, 1)).mean((1, 2))
    return (model.head(x) + model.head_dist(x)) / 2


@pytest.mark.parametrize(
    ("attention_depths", "kinds"),
    [
        ((0, 0, 2, 2), ["P", "PP", "PAA", "AA"]),
        ((0, 0, 3, 2), ["P", "PP", "AAA", "AA"]),
        ((0, 0, 0, 1), ["P", "PP", "PPP", "PA"]),
        ((0, 0, 0, 0), ["P", "PP", "PPP", "PP"]),
    ],
)
def test_every_stage_halves_the_side_and_ends_with_its_attention(attention_depths, kinds) -> None:
    model = built(replace(SMALL, attention_depths=attention_depths))
    found = [
        "".join(type(b).__name__[0] for b in stage.blocks if not type(b).__name__.startswith("To"))
        for stage in model.stages
    ]
    assert found == kinds
    sides: list[tuple[int, ...]] = []
    for stage in model.stages[1:]:
        stage.downsample.register_forward_hook(lambda _, i, o: sides.append(tuple(o.shape)))
    images = pictures(3, 64, seed=3)
    with torch.no_grad():
        got = model(images)
        assert sides == [(3, 16, 8, 8), (3, 32, 4, 4), (3, 32, 2, 2)]
        assert error_over_spread(got, blocks_by_hand(model, images)) <= 1e-5


def test_the_zoo_tells_its_shapes_and_they_build_it_again() -> None:
    model = create_model("efficientformer_l1", num_classes=7, input_size=64)
    assert model.shape == L1
    again = model.shape.build(7, 64)
    assert not again.training
    assert list(again.state_dict()) == list(model.state_dict())
    again.load_state_dict(model.state_dict())
    images = pictures(2, 64, seed=4)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_equal_widths_have_the_names_of_any_others() -> None:
    wide, flat = SMALL, replace(SMALL, widths=(16, 16, 16, 16))
    assert list(flat.build(4, 32).state_dict()) == list(wide.build(4, 32).state_dict())


def test_a_shape_goes_through_json() -> None:
    told = json.loads(json.dumps(shape_as_json(SMALL)))
    assert shape_from_json(family_of_shape(SMALL), told) == SMALL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depths": (1, 0, 3, 2)}, "depths of an EfficientFormer are 4 whole numbers from 1"),
        ({"depths": (1, 2, 3)}, "depths of an EfficientFormer are 4"),
        ({"widths": (1, 16, 32, 32)}, "widths of an EfficientFormer are 4 whole numbers from 2"),
        ({"widths": (16, 16, 32, 10**9)}, "widths"),
        ({"widths": (16.0, 16, 32, 32)}, "widths"),
        ({"widths": (True, 16, 32, 32)}, "widths"),
        ({"widths": "1632"}, "widths"),
        ({"attention_depths": (0, 1, 3, 2)}, "must be 0 in stages 1 and 2"),
        ({"attention_depths": (0, 0, 4, 2)}, "at most the depth in stages 3 and 4, 3 and 2"),
        ({"attention_depths": (0, 0, 1, 1)}, "only where all 2 blocks of stage 4 do"),
        ({"attention_depths": (0, 0, 0, -1)}, "attention_depths of an EfficientFormer"),
    ],
)
def test_impossible_shapes(change, said) -> None:
    with pytest.raises(ModelError, match=said):
        replace(SMALL, **change)
    values = shape_as_json(SMALL) | {k: list(v) for k, v in change.items()}
    with pytest.raises(ModelError):
        shape_from_json("efficientformer", values)


@pytest.mark.parametrize(
    ("classes", "size", "said"), [(0, 64, "at least 1 class"), (4, 48, "multiple of 32")]
)
def test_impossible_networks_of_a_possible_shape(classes, size, said) -> None:
    with pytest.raises(ModelError, match=said):
        SMALL.build(classes, size)

"""A sliced ViT against the full one with weights of zero, and against a masked LayerNorm."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import error_over_spread
from partition_tools import CLASSES, images, small_vit
from torch import Tensor, nn

from edgevit.models.vit import VisionTransformer
from partition.cutting.gates import Gates, gated
from partition.cutting.geometry import Keep, geometry_of
from partition.cutting.importance import Importance
from partition.cutting.slicing import Kept, choose, everything, slice_vit
from partition.errors import PartitionError

ALL_CHANNELS = tuple(range(32))
HEADS = ((0, 3), (1, 2), (2, 3))
FFN = tuple(tuple(range(start, 80, 3))[:25] for start in (0, 1, 2))
CHANNELS = tuple(c for c in range(32) if c % 3)


@torch.no_grad()
def zeroed(vit: VisionTransformer, heads: bool, ffn: bool) -> VisionTransformer:
    """A full model whose weights say that the other heads and units give nothing."""
    vit = copy.deepcopy(vit)
    for index, block in enumerate(vit.blocks):
        for head in set(range(4)) - set(HEADS[index] if heads else range(4)):
            block.attn.proj.weight[:, 8 * head : 8 * head + 8] = 0
        for unit in set(range(80)) - set(FFN[index] if ffn else range(80)):
            block.mlp.fc2.weight[:, unit] = 0
    return vit


class MaskedLayerNorm(nn.Module):
    """LayerNorm over the channels of a mask alone; the other channels come out as zero."""

    def __init__(self, norm: nn.LayerNorm, mask: Tensor) -> None:
        super().__init__()
        self.norm, self.mask = norm, mask

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        kept = x[..., self.mask]
        out[..., self.mask] = F.layer_norm(
            kept, kept.shape[-1:], self.norm.weight[self.mask], self.norm.bias[self.mask],
            self.norm.eps,
        )  # fmt: skip
        return out


def masked(vit: VisionTransformer) -> VisionTransformer:
    vit = copy.deepcopy(vit)
    mask = torch.zeros(32, dtype=torch.bool)
    mask[list(CHANNELS)] = True
    for block in vit.blocks:
        block.norm1 = MaskedLayerNorm(block.norm1, mask)
        block.norm2 = MaskedLayerNorm(block.norm2, mask)
    vit.norm = MaskedLayerNorm(vit.norm, mask)
    return vit


def kept(channels: bool = False, heads: bool = False, ffn: bool = False) -> Kept:
    full = everything(geometry_of(small_vit()))
    return Kept(
        CHANNELS if channels else full.residual,
        HEADS if heads else full.heads,
        FFN if ffn else full.ffn,
    )


def gates_of(kept: Kept, batch: int) -> Gates:
    gates = Gates(torch.zeros(batch, 32), torch.zeros(batch, 3, 4), torch.zeros(batch, 3, 80))
    gates.residual[:, list(kept.residual)] = 1
    for index in range(3):
        gates.heads[:, index, list(kept.heads[index])] = 1
        gates.ffn[:, index, list(kept.ffn[index])] = 1
    return gates


@pytest.mark.parametrize(("heads", "ffn"), [(True, False), (False, True), (True, True)])
@torch.no_grad()
def test_heads_and_units_sliced_equal_weights_of_zero(heads, ffn):
    vit, x = small_vit(), images(8)
    small = slice_vit(vit, kept(heads=heads, ffn=ffn))
    assert error_over_spread(small(x), zeroed(vit, heads, ffn)(x)) <= 1e-5
    # and not because nothing was taken away
    assert error_over_spread(small(x), vit(x)) > 1e-2


@pytest.mark.parametrize("others", [False, True])
@torch.no_grad()
def test_channels_sliced_equal_a_masked_layer_norm(others):
    vit, x = small_vit(), images(8)
    small = slice_vit(vit, kept(True, others, others))
    reference = masked(zeroed(vit, others, others))(x)
    assert error_over_spread(small(x), reference) <= 1e-5
    assert error_over_spread(small(x), vit(x)) > 1e-2


@pytest.mark.parametrize(
    "parts", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)]
)
@torch.no_grad()
def test_gates_of_zero_equal_the_slice(parts):
    vit, x = small_vit(), images(8)
    chosen = kept(*parts)
    with gated(vit, gates_of(chosen, 8)):
        through = vit(x)
    assert error_over_spread(through, slice_vit(vit, chosen)(x)) <= 1e-5
    assert torch.equal(vit(x), small_vit()(x))  # the hooks are gone


@torch.no_grad()
def test_a_slice_has_the_classes_asked_for_and_leaves_the_model_alone():
    vit, x = small_vit(), images(4)
    before = copy.deepcopy(vit.state_dict())
    chosen = kept(True, True, True)
    small = slice_vit(vit, chosen, classes=(4, 1))
    torch.testing.assert_close(small(x), slice_vit(vit, chosen)(x)[:, [4, 1]])
    for value in small.parameters():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@torch.no_grad()
def test_a_slice_of_a_slice_is_a_slice_of_the_model():
    vit, x = small_vit(), images(4)
    outer = kept(True, True, True)
    inner = Kept(tuple(range(0, 21, 2)), ((1,), (0,), (1,)), (tuple(range(3, 20)),) * 3)
    twice = slice_vit(slice_vit(vit, outer), inner)
    assert torch.equal(twice(x), slice_vit(vit, outer.inside(inner))(x))


def test_the_most_important_are_chosen_in_ascending_order():
    importance = Importance(
        torch.tensor([1.0, 5, 3, 3, 0, 4]),
        torch.tensor([[1.0, 2, 3], [3, 2, 1]]),
        torch.tensor([[0.0, 0, 0, 0], [4, 3, 2, 9]]),
        1,
    )
    chosen = choose(importance, Keep(2, residual=3, ffn=2))
    assert chosen.residual == (1, 2, 5)  # of the two threes the first
    assert chosen.heads == ((1, 2), (0, 1))
    assert chosen.ffn == ((0, 1), (0, 3))
    assert choose(importance, Keep(1)).residual == (1, 5)  # a third, as of the heads


def test_indices_survive_json():
    chosen = kept(True, True, True)
    assert Kept.from_json(json.loads(json.dumps(chosen.as_json()))) == chosen
    with pytest.raises(PartitionError, match="no indices of a sub-model"):
        Kept.from_json({"residual": [1], "heads": 3})


@pytest.mark.parametrize(
    ("wrong", "classes", "message"),
    [
        (Kept((0, 32), HEADS, FFN), None, "residual channels must be different numbers"),
        (Kept((), HEADS, FFN), None, "residual channels"),
        (Kept(CHANNELS, HEADS[:2], FFN), None, "heads for each of 3 blocks, got 2"),
        (Kept(CHANNELS, ((0,), (1, 2), (3,)), FFN), None, "every block keeps as many heads"),
        (Kept(CHANNELS, HEADS, ((1, 1), (1, 2), (3, 4))), None, "FFN units must be different"),
        (Kept(CHANNELS, HEADS, FFN), (0, CLASSES), "classes must be different numbers from 0 to 5"),
    ],
)
def test_indices_that_are_not_the_models_are_refused(wrong, classes, message):
    with pytest.raises(PartitionError, match=message):
        slice_vit(small_vit(), wrong, classes)

"""Sub-models and fusions as modules and as files."""

from __future__ import annotations

import json

import pytest
import torch
from partition_tools import CLASSES, images, small_vit
from safetensors import safe_open

from partition.cutting.geometry import Keep, geometry_of, scaled
from partition.cutting.importance import class_importance
from partition.cutting.prune import prune
from partition.cutting.slicing import Kept, choose, slice_vit
from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.learning.fusion import Fusion, drop_blocks, without

KEPT = Kept(tuple(range(0, 32, 2)), ((0, 2),) * 3, (tuple(range(10, 50)),) * 3)
OWN = (4, 1)


def submodel(other: bool = True) -> Submodel:
    return Submodel.cut(small_vit(), KEPT, OWN, other=other)


@torch.no_grad()
def test_the_head_starts_as_the_full_models():
    vit, x = small_vit(), images(5)
    sliced = slice_vit(vit, KEPT)(x)
    with_other, without_other = submodel(), submodel(other=False)
    logits = with_other.head(with_other.features(x))
    rest = sorted(set(range(CLASSES)) - set(OWN))
    torch.testing.assert_close(logits[:, 1:], sliced[:, list(OWN)])
    torch.testing.assert_close(logits[:, 0], sliced[:, rest].mean(1))
    torch.testing.assert_close(without_other.head(without_other.features(x)), sliced[:, list(OWN)])


@torch.no_grad()
def test_it_answers_with_features_or_logits():
    sub, x = submodel(), images(5)
    features = sub(x)
    assert features.shape == (5, sub.width) == (5, sub.outputs) == (5, 16)
    sub.answer = "logits"
    assert sub(x).shape == (5, sub.outputs) == (5, 3)
    assert torch.equal(sub(x), sub.head(features))


def test_its_geometry_is_the_scaled_one():
    full = geometry_of(small_vit())
    assert submodel().geometry == scaled(full, Keep(2, residual=16, ffn=40), classes=3)
    assert sum(p.numel() for p in submodel().parameters()) == submodel().geometry.params


@pytest.mark.parametrize("other", [True, False])
@torch.no_grad()
def test_it_comes_back_from_its_file(tmp_path, other):
    sub, x = submodel(other), images(4)
    sub.answer = "logits"
    sub.save(tmp_path / "sub.safetensors")
    back = Submodel.load(tmp_path / "sub.safetensors")
    assert torch.equal(back(x), sub.eval()(x)) and not back.training
    assert (back.classes, back.kept, back.other, back.answer) == (OWN, KEPT, other, "logits")


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "sub.safetensors"
    path.write_bytes(b"nothing of the kind")
    for kind in (Submodel, Fusion):
        with pytest.raises(PartitionError, match=r"is no (sub-model|fusion) that can be read"):
            kind.load(path)
    submodel().save(path)
    with pytest.raises(PartitionError, match="is no fusion of edgevit partition"):
        Fusion.load(path)
    Fusion([3, 4], 5).save(path)
    with pytest.raises(PartitionError, match="is no sub-model of edgevit partition"):
        Submodel.load(path)
    with pytest.raises(PartitionError, match=r"cannot write .*File exists"):
        submodel().save(path / "below.safetensors")


def test_the_file_says_what_it_is_without_code(tmp_path):
    submodel().save(tmp_path / "sub.safetensors")
    with safe_open(tmp_path / "sub.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["edgevit"])
    assert about["classes"] == [4, 1] and about["kept"]["heads"] == [[0, 2]] * 3


def test_a_head_of_another_width_is_refused():
    with pytest.raises(PartitionError, match="has 3 logits, got a head of 2"):
        Submodel(slice_vit(small_vit(), KEPT, OWN), OWN, KEPT)
    with pytest.raises(PartitionError, match="features or logits, not with 'both'"):
        Submodel(slice_vit(small_vit(), KEPT, OWN), OWN, KEPT, other=False, answer="both")


def test_pruning_takes_the_best_for_the_classes():
    vit, x = small_vit(), images(8)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    keep = Keep(2)
    kept = prune(vit, [(x, labels)], keep, (0, 1))
    assert kept == choose(class_importance(vit, [(x, labels)], (0, 1)), keep)
    assert kept != prune(vit, [(x, labels)], keep, (2, 3))


def test_pruning_in_stages_scores_what_each_stage_left():
    vit, data = small_vit(), [(images(8), torch.arange(8) % CLASSES)]
    kept = prune(vit, data, Keep(2), recompute=True)
    once = prune(vit, data, Keep(2))
    assert kept.residual == once.residual  # the first stage sees the whole model in both
    narrow = Kept(kept.residual, ((0, 1, 2, 3),) * 3, (tuple(range(80)),) * 3)
    heads = choose(class_importance(slice_vit(vit, narrow), data), Keep(2, 16, 80)).heads
    assert kept.heads == heads
    fewer = Kept(kept.residual, kept.heads, narrow.ffn)
    assert kept.ffn == choose(class_importance(slice_vit(vit, fewer), data), Keep(2, 16, 40)).ffn
    assert kept != once


@torch.no_grad()
def test_a_fusion_is_the_mlp_it_says_and_comes_back(tmp_path):
    torch.manual_seed(0)
    fusion, x = Fusion([3, 4], 5, (9, 6)), torch.randn(4, 7)
    w = list(fusion.parameters())
    by_hand = (x @ w[0].T + w[1]).relu()
    by_hand = (by_hand @ w[2].T + w[3]).relu() @ w[4].T + w[5]
    torch.testing.assert_close(fusion(x), by_hand)
    fusion.save(tmp_path / "fusion.safetensors")
    back = Fusion.load(tmp_path / "fusion.safetensors")
    assert torch.equal(back(x), fusion(x)) and back.hidden == (9, 6)
    assert Fusion([30, 30], 5).hidden == (30,) and Fusion([3, 3], 10).hidden == (10,)
    assert fusion.params == sum(value.numel() for value in w)
    with pytest.raises(PartitionError, match=r"blocks of \[3, 0\] and 5 classes"):
        Fusion([3, 0], 5)


def test_lost_blocks_are_zeros():
    blocks = torch.arange(1.0, 8).repeat(2, 1)
    found = without(blocks, [3, 1, 3], (2, 0))
    assert found.tolist() == [[0, 0, 0, 4, 0, 0, 0]] * 2
    assert torch.equal(without(blocks, [3, 1, 3], ()), blocks)
    with pytest.raises(PartitionError, match=r"cannot lose sub-models \[3\] of 3"):
        without(blocks, [3, 1, 3], (3,))


def test_block_dropout_takes_whole_blocks_at_its_rate_and_never_all():
    widths, rate, count = [2, 3, 1], 0.6, 20000
    generator = torch.Generator().manual_seed(0)
    found = drop_blocks(torch.ones(count, 6), widths, rate, generator)
    here = torch.stack([part[:, 0] for part in found.split(widths, 1)], 1)
    for index, part in enumerate(found.split(widths, 1)):
        assert torch.equal(part, here[:, index, None].expand_as(part))
    assert (here.sum(1) > 0).all()
    # Each is there by itself, or is the one of three that is spared where all would be gone.
    expected = (1 - rate) + rate**3 / 3
    assert here.mean(0).tolist() == pytest.approx([expected] * 3, abs=0.015)
    again = drop_blocks(torch.ones(count, 6), widths, rate, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    one = drop_blocks(torch.ones(50, 4), [4], 0.9, generator)
    assert torch.equal(one, torch.ones(50, 4))

"""Importance by gate gradients: against second derivatives, against the literal measure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from partition_tools import CLASSES, images, small_vit
from torch import Tensor

from partition.cutting.gates import Gates, gated
from partition.cutting.geometry import geometry_of
from partition.cutting.importance import Importance, class_importance, literal_importance
from partition.cutting.slicing import Kept, everything, slice_vit
from partition.errors import PartitionError

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])


def batches(count: int = 8, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Two batches of unequal size."""
    x = images(count, dtype=dtype)
    return [(x[:3], LABELS[:3]), (x[3:], LABELS[3:count])]


def flat(importance: Importance) -> Tensor:
    return torch.cat([importance.residual, importance.heads.flatten(), importance.ffn.flatten()])


def test_it_is_the_second_derivative_of_the_divergence():
    """d2 KL(p || p_g) / dg2 by autograd twice over, one picture at a time, halved."""
    vit = small_vit(dtype=torch.float64)
    shape = geometry_of(vit)
    expected = torch.zeros(32 + 3 * 4 + 3 * 80, dtype=torch.float64)
    for x in images(4, dtype=torch.float64):
        p = vit(x[None]).softmax(1).detach()

        def divergence(gate: Tensor, x: Tensor = x, p: Tensor = p) -> Tensor:
            residual, heads, ffn = gate.split([32, 12, 240])
            gates = Gates(residual[None], heads.view(1, 3, 4), ffn.view(1, 3, 80))
            with gated(vit, gates):
                return F.kl_div(F.log_softmax(vit(x[None]), 1), p, reduction="sum")

        hessian = torch.autograd.functional.hessian(
            divergence, torch.ones_like(expected), vectorize=True
        )
        expected += hessian.diagonal() / 2 / 4
    found = class_importance(vit, batches(4))
    assert found.pictures == 4 and found.heads.shape == (shape.depth, shape.heads)
    torch.testing.assert_close(flat(found), expected, rtol=1e-6, atol=1e-12)
    assert flat(found).max() > 1e-3


def test_literal_is_the_divergence_of_the_slice_without_it():
    vit, x = small_vit(dtype=torch.float64), images(8, dtype=torch.float64)
    full = everything(geometry_of(vit))
    found = literal_importance(vit, batches())

    def divergence(kept: Kept) -> float:
        with torch.no_grad():
            p, q = vit(x).softmax(1), slice_vit(vit, kept)(x).softmax(1)
        return float((p * (p.log() - q.log())).sum(1).mean())

    channel = Kept(full.residual[:7] + full.residual[8:], full.heads, full.ffn)
    assert float(found.residual[7]) == pytest.approx(divergence(channel), rel=1e-6)
    # A slice has as many heads in every block, so the others are left out there too, by weight.
    for index, block in enumerate(vit.blocks):
        with torch.no_grad():
            column, unit = block.attn.proj.weight[:, 8:16], block.mlp.fc2.weight[:, 5]
            for weight, cost in (
                (column, found.heads[index, 1]),
                (unit, found.ffn[index, 5]),
            ):
                p, kept = vit(x).softmax(1), weight.clone()
                weight.zero_()
                q = vit(x).softmax(1)
                weight.copy_(kept)
                assert float(cost) == pytest.approx(
                    float((p * (p.log() - q.log())).sum(1).mean()), rel=1e-6
                )


def test_only_the_pictures_of_the_classes_count():
    vit = small_vit(dtype=torch.float64)
    x = images(8, dtype=torch.float64)
    mine = torch.isin(LABELS, torch.tensor([1, 4]))
    found = class_importance(vit, batches(), {4, 1})
    assert found.pictures == 3
    torch.testing.assert_close(flat(found), flat(class_importance(vit, [(x[mine], LABELS[mine])])))
    assert not torch.allclose(flat(found), flat(class_importance(vit, batches())), rtol=0.1)
    slow = literal_importance(vit, batches(), (1, 4))
    assert slow.pictures == 3


def test_draws_come_near_the_exact_sum_and_follow_the_seed():
    vit = small_vit()
    data = batches(dtype=torch.float32)
    exact, few = class_importance(vit, data), class_importance(vit, data, draws=2, seed=1)
    many = class_importance(vit, data, draws=100, seed=1)
    assert torch.equal(flat(few), flat(class_importance(vit, data, draws=2, seed=1)))
    assert not torch.equal(flat(few), flat(class_importance(vit, data, draws=2, seed=2)))

    def apart(other: Importance) -> float:
        return float((flat(other) - flat(exact)).norm() / flat(exact).norm())

    assert apart(many) < 0.3 and apart(many) < apart(few) / 3


def test_the_model_is_left_as_it_was():
    vit = small_vit().train()
    told: list[int] = []
    class_importance(vit, batches(dtype=torch.float32), tell=told.append)
    assert told == [3, 8] and vit.training
    assert all(value.grad is None and value.requires_grad for value in vit.parameters())


def test_no_pictures_are_an_error():
    with pytest.raises(PartitionError, match=r"there are none of the classes \[17\]"):
        class_importance(small_vit(), batches(dtype=torch.float32), (17,))
    assert CLASSES < 17

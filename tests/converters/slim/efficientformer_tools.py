"""Small EfficientFormers and supernets, with weights under which every branch matters."""

from __future__ import annotations

import torch
from helpers import pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from converters.slim.families.base import Importance
from converters.slim.families.efficientformer import EfficientFormerFamily
from edgevit.models.efficientformer import EfficientFormerShape

FAMILY = EfficientFormerFamily()
SIDE, CLASSES = 64, 10
SHAPE = EfficientFormerShape((16, 32, 32, 48), (2, 2, 3, 3), (0, 0, 1, 3))
POOLING = EfficientFormerShape((16, 32, 32, 48), (2, 2, 3, 3), (0, 0, 0, 2))


def network(shape: EfficientFormerShape = SHAPE) -> nn.Module:
    model = randomise(shape.build(CLASSES, SIDE), seed=1)
    return settle_batch_norm(model, pictures(4, SIDE, seed=2))


def supernet(shape: EfficientFormerShape = SHAPE) -> nn.Module:
    """With alphas that differ."""
    model = randomise(FAMILY.supernet(shape, CLASSES, SIDE), seed=1)
    return settle_batch_norm(model, pictures(4, SIDE, seed=2))


def batches(count: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(pictures(8, SIDE, seed=10 + i), torch.arange(8) + i) for i in range(count)]


def importance_of(source: nn.Module) -> Importance:
    return FAMILY.importance(source, batches())


def made_up(shape: EfficientFormerShape, seed: int = 0) -> Importance:
    """Block scores without a network."""
    draw = torch.Generator().manual_seed(seed)
    return Importance(
        tuple(tuple(torch.rand(depth, generator=draw).tolist()) for depth in shape.depths)
    )

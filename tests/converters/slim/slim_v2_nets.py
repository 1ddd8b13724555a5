"""A tiny EfficientFormerV2, its supernet with random weights, and subnets of it."""

from __future__ import annotations

import numpy as np
import torch
from helpers import pictures, randomise, settle_batch_norm

from converters.slim.families.base import Importance, Subnet
from converters.slim.families.efficientformerv2 import EfficientFormerV2Family
from converters.slim.families.efficientformerv2_space import channels
from converters.slim.supernets.efficientformerv2 import EfficientFormerV2Supernet
from edgevit.models.efficientformerv2 import EfficientFormerV2, EfficientFormerV2Shape

CLASSES, SIDE = 10, 32
# Every block of the last two stages attends, as in the paper's supernet, but for one of each.
SHAPE = EfficientFormerV2Shape((16, 24, 24, 32), ((2, 2), (2, 1), (2, 3, 2), (1, 2)), (2, 1))
FAMILY = EfficientFormerV2Family()
WHOLE = FAMILY.whole(SHAPE)


def subnets(count: int, seed: int) -> list[Subnet]:
    """Random ones, all different."""
    rng = np.random.default_rng(seed)
    found: dict[Subnet, None] = {}
    while len(found) < count:
        found[FAMILY.random(SHAPE, rng)] = None
    return list(found)


@torch.no_grad()
def random_supernet(seed: int) -> EfficientFormerV2Supernet:
    """In eval mode; every width's BatchNorms have statistics and weights of their own."""
    net = EfficientFormerV2Supernet(SHAPE, CLASSES, SIDE)
    randomise(net, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in net.named_parameters():
        if name.endswith("bn.weight") or name == "norm.weight":
            parameter.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def random_network(seed: int) -> EfficientFormerV2:
    """A plain network of the whole shape, as if it had been trained by itself."""
    net = randomise(SHAPE.build(CLASSES, SIDE), seed)
    settle_batch_norm(net, pictures(16, SIDE, seed))
    assert isinstance(net, EfficientFormerV2)
    return net


def random_importance(seed: int) -> Importance:
    """Scores of which no two are alike."""
    rng = np.random.default_rng(seed)
    scores = {
        space: torch.from_numpy(rng.permutation(count)).float()
        for space, count in channels(WHOLE).items()
    }
    return Importance(tuple(tuple(rng.random(len(s))) for s in WHOLE.blocks), scores)

"""A small random ViT and pictures that tell it apart, for the tests of the partitioner."""

from __future__ import annotations

import torch
from helpers import pictures, randomise
from torch import Tensor

from edgevit.models.vit import VisionTransformer

SIDE, CLASSES = 32, 6


def small_vit(seed: int = 0, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """Three blocks of four heads of eight channels, the width 32, FFN 80, non-trivial weights."""
    vit = VisionTransformer(32, 3, 4, CLASSES, SIDE, mlp_dim=80)
    randomise(vit, seed)
    return vit.to(dtype).eval()


def images(count: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return pictures(count, SIDE, seed).to(dtype)

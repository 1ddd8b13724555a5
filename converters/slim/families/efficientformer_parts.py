"""What EfficientFormers consist of, as the latency table counts them, and how each is measured.

Beside these parts there is only a change of layout where stage 3 attends, from map to tokens and
back, once: no arithmetic, so the additive model leaves it to its correction.
"""

# Shapes: B batch, C channels, H height, W width, N tokens.

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Part, Probe
from converters.slim.slicing import settle_statistics
from edgevit.models.efficientformer import (
    STAGES,
    Attention,
    AttentionBlock,
    Downsample,
    EfficientFormerShape,
    LayerScale,
    PoolingBlock,
    Stem,
    ToTokens,
)

FAMILY = "efficientformer"
STEM, DOWNSAMPLE, HEAD = "stem", "downsample", "head"
POOL_BLOCK, ATTENTION_BLOCK = "pool_block", "attention_block"
# How many dims each kind has: the width, or the width in and out (for a head: the classes).
DIMS = {STEM: 1, DOWNSAMPLE: 2, POOL_BLOCK: 1, ATTENTION_BLOCK: 1, HEAD: 2}

TIMES = 6
SEED = 0
NOISE_PICTURES = 8


def parts_of(shape: EfficientFormerShape, side: int, classes: int) -> Counter[Part]:
    """The parts of a network for pictures of side x side pixels."""
    widths = shape.widths
    found = Counter({Part(FAMILY, STEM, side, (widths[0],)): 1})
    for index in range(STAGES):
        own_side, attending = side // (4 * 2**index), shape.attention_depths[index]
        if index:
            found[Part(FAMILY, DOWNSAMPLE, 2 * own_side, widths[index - 1 : index + 1])] += 1
        found[Part(FAMILY, POOL_BLOCK, own_side, (widths[index],))] += (
            shape.depths[index] - attending
        )
        found[Part(FAMILY, ATTENTION_BLOCK, own_side, (widths[index],))] += attending
    found[Part(FAMILY, HEAD, side // 2 ** (STAGES + 1), (widths[-1], classes))] += 1
    return +found


class Head(nn.Module):
    """From the last map (B, C, H, W) to logits (B, classes), as in eval: norm, mean, both heads."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.to_tokens = ToTokens()
        self.norm = nn.LayerNorm(dim)
        self.head, self.head_dist = nn.Linear(dim, classes), nn.Linear(dim, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BC = self.norm(self.to_tokens(x_BCHW)).mean(1)
        logits: Tensor = (self.head(x_BC) + self.head_dist(x_BC)) / 2
        return logits


def module_of(part: Part) -> nn.Module:
    """One part as a module, initialised as its network does. Raises SlimError for an unknown kind.

    An attention block takes tokens (B, N, C), the others take maps (B, C, H, W).
    """
    if part.family != FAMILY or DIMS.get(part.kind) != len(part.dims):
        raise SlimError(f"EfficientFormers have no part {part}")
    width = part.dims[0]
    if part.kind == STEM:
        return Stem(width)
    if part.kind == POOL_BLOCK:
        return PoolingBlock(width)
    if part.kind == ATTENTION_BLOCK:
        return AttentionBlock(width, part.side)
    return (Downsample if part.kind == DOWNSAMPLE else Head)(width, part.dims[1])


class Chain(nn.Module):
    """Pictures at the blocks' resolution, a 1x1 convolution to their width, the blocks, a mean."""

    def __init__(self, part: Part, count: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, part.dims[0], 1)
        attends = part.kind == ATTENTION_BLOCK
        self.to_tokens = ToTokens() if attends else nn.Identity()
        self.blocks = nn.Sequential(*(module_of(part) for _ in range(count)))
        self.positions = (1,) if attends else (2, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.to_tokens(self.entry(x_BCHW)))
        return y.mean(self.positions)


class Beside(nn.Module):
    """Copies with weights of their own, side by side on one map, and the mean of what each gives.

    A head's copies get a map each, in both networks of a probe: engines work out only once what
    does not depend on weights, here the normalised tokens.
    """

    def __init__(self, part: Part, count: int, most: int) -> None:
        super().__init__()
        self.width = part.dims[0]
        self.apart = part.kind == HEAD
        wide = self.width * (most if self.apart else 1)
        self.entry = nn.Identity() if part.kind == STEM else nn.Conv2d(3, wide, 1)
        self.copies = nn.ModuleList(module_of(part) for _ in range(count))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.entry(x_BCHW)
        found = []
        for index, copy in enumerate(self.copies):
            first = index * self.width
            own_BCHW = x_BCHW[:, first : first + self.width] if self.apart else x_BCHW
            y: Tensor = copy(own_BCHW)
            found.append(y if y.dim() == 2 else y.mean((2, 3)))
        return torch.cat(found, 1)


def probe_of(part: Part) -> Probe:
    """One part, and one with TIMES more of it, with seeded weights under which pictures matter."""
    chained = part.kind in (POOL_BLOCK, ATTENTION_BLOCK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        short, long = (
            _lively(Chain(part, n) if chained else Beside(part, n, 1 + TIMES), part.side)
            for n in (1, 1 + TIMES)
        )
    return Probe(short, long, TIMES, part.side)


@torch.no_grad()
def _lively(module: nn.Module, side: int) -> nn.Module:
    """No branch silent, no factor 1 or summand 0 that a converter could drop, no statistics off."""
    for part in module.modules():
        if isinstance(part, LayerScale):
            part.gamma.uniform_(0.5, 1.5)
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0.0, 0.1)
        elif isinstance(part, Attention):
            part.attention_biases.normal_()
    settle_statistics(module, [torch.randn(NOISE_PICTURES, 3, side, side)])
    return module

"""What an EfficientFormerV2 consists of, and the networks that show what each part costs.

A block with attention is two parts, its attention and its FFN, each with its residual: so a table
needs a time for every width and every ratio, and not for every block that they can make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Part, Probe
from converters.slim.families.efficientformerv2_space import ATTENDING, STAGES, attends
from converters.slim.slicing import settle_statistics
from edgevit.models.efficientformerv2 import (
    FFN,
    Attention,
    Downsample,
    EfficientFormerV2Shape,
    LayerScale,
    Stem,
)

FAMILY = "efficientformerv2"
TIMES = 6  # copies of a part that the long network has more than the short one
SEED = 0


class Residual(nn.Module):
    """A branch that keeps the shape, layer-scaled, added to its input."""

    def __init__(self, branch: nn.Module, dim: int) -> None:
        super().__init__()
        self.branch = branch
        self.scale = LayerScale(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = x_BCHW + self.scale(self.branch(x_BCHW))
        return y_BCHW


class Head(nn.Module):
    """BatchNorm, mean over the map, mean of both heads: (B, C, H, W) to (B, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.head = nn.Linear(dim, classes)
        self.head_dist = nn.Linear(dim, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BC = _mean(self.norm(x_BCHW))
        y_BY: Tensor = (self.head(x_BC) + self.head_dist(x_BC)) / 2
        return y_BY


class Chain(nn.Module):
    """Parts that keep the shape, one after the other, behind a map of `dim` channels."""

    def __init__(self, dim: int, parts: list[nn.Module]) -> None:
        super().__init__()
        self.entrance = _entrance(dim)
        self.parts = nn.Sequential(*parts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _mean(self.parts(self.entrance(x_BCHW)))


class Fan(nn.Module):
    """Parts that change the shape, side by side over one map; what they give is concatenated.

    dim is None where they take the pictures themselves.
    """

    def __init__(self, dim: int | None, parts: list[nn.Module]) -> None:
        super().__init__()
        self.entrance = nn.Identity() if dim is None else _entrance(dim)
        self.parts = nn.ModuleList(parts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.entrance(x_BCHW)
        found = [part(x_BCHW) for part in self.parts]
        return torch.cat([y if y.dim() == 2 else _mean(y) for y in found], dim=1)


def _entrance(dim: int) -> nn.Module:
    """A map of `dim` channels from a picture. The GELU keeps it from folding into what follows."""
    return nn.Sequential(nn.Conv2d(3, dim, 1), nn.GELU())


def _mean(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.mean((2, 3), keepdim=True).flatten(1)


def _downsample(side: int, dims: tuple[int, ...], *, attention: bool) -> nn.Module:
    dim_in, dim_out = dims
    return Downsample(dim_in, dim_out, side, attention=attention)


def _attention(side: int, dims: tuple[int, ...], *, halved: bool) -> nn.Module:
    return Residual(Attention(dims[0], side, halved=halved), dims[0])


# By kind: from the side of the input map and the dims to the module.
Make = Callable[[int, tuple[int, ...]], nn.Module]
_KEEPING: dict[str, Make] = {
    "ffn": lambda side, dims: Residual(FFN(*dims), dims[0]),
    "attention": partial(_attention, halved=False),
    "halved_attention": partial(_attention, halved=True),
}
_CHANGING: dict[str, Make] = {
    "stem": lambda side, dims: Stem(*dims),
    "downsample": partial(_downsample, attention=False),
    "attention_downsample": partial(_downsample, attention=True),
    "head": lambda side, dims: Head(*dims),
}


def parts_of(shape: EfficientFormerV2Shape, side: int, classes: int) -> Counter[Part]:
    """The parts of a network for pictures of side x side pixels."""
    found = Counter([Part(FAMILY, "stem", side, (shape.widths[0],))])
    for stage in STAGES:
        width, here = shape.widths[stage], side // (4 * 2**stage)
        if stage:
            kind = "attention_downsample" if stage == 3 else "downsample"
            found[Part(FAMILY, kind, 2 * here, (shape.widths[stage - 1], width))] += 1
        mixer = "halved_attention" if stage == ATTENDING[0] else "attention"
        for position, ratio in enumerate(shape.mlp_ratios[stage]):
            if attends(shape, stage, position):
                found[Part(FAMILY, mixer, here, (width,))] += 1
            found[Part(FAMILY, "ffn", here, (width, ratio))] += 1
    found[Part(FAMILY, "head", side // 32, (shape.widths[3], classes))] += 1
    return found


def module_of(part: Part) -> nn.Module:
    """A part by itself, with random weights. Raises SlimError for one that there is not."""
    make = (_KEEPING | _CHANGING).get(part.kind)
    if make is None or part.family != FAMILY:
        raise SlimError(f"{FAMILY} has no part {part}; expected {', '.join(_KEEPING | _CHANGING)}")
    return make(part.side, part.dims)


def probe_of(part: Part) -> Probe:
    """Networks with the part once and `TIMES` times more. Raises SlimError as `module_of`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Probe(_probe(part, 1), _probe(part, 1 + TIMES), TIMES, part.side)


def _probe(part: Part, count: int) -> nn.Module:
    parts = [module_of(part) for _ in range(count)]
    network: nn.Module
    if part.kind in _KEEPING:
        network = Chain(part.dims[0], parts)
    else:
        network = Fan(None if part.kind == "stem" else part.dims[0], parts)
    for module in network.modules():
        if isinstance(module, LayerScale):  # 1e-5 as it begins would hide what the branch computes
            nn.init.ones_(module.gamma)
    pictures = max(4, 64 // part.side)  # a 1x1 map has a value a picture and channel
    settle_statistics(network, [torch.randn(pictures, 3, part.side, part.side)])
    return network

"""Probes out of parts: a chain of those that keep their map's shape, a fan of those that do not.

Around the part is the same in the short and the long network: what makes a map of the part's width
out of a picture, and a mean over height and width. The map goes through a ReLU first, so that no
folding joins its convolution with the part in one network and not in the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from converters.slim.families.base import Probe
from converters.slim.slicing import settle_statistics

TIMES = 6
LOGITS = 10
# Of the noise that BatchNorm statistics settle on, at least so many.
PICTURES, POSITIONS = 4, 256


class Chain(nn.Module):
    """Pictures (B, 3, H, W) to a map, `parts` one after the other, a linear map of its mean."""

    def __init__(self, width: int, parts: list[nn.Module]) -> None:
        super().__init__()
        self.entry = _entry(width)
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(width, LOGITS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BC: Tensor = self.head(_mean(self.parts(self.entry(x_BCHW))))
        return y_BC


class Fan(nn.Module):
    """Pictures to a map, unless `width` is None, which every part is given; their means in a row.

    A part gives a map (B, C, H, W), or logits (B, classes) already. Heads begin with a mean of the
    map that is the same for all; an engine that sees that takes it once, so that it belongs to what
    every network costs beside its parts.
    """

    def __init__(self, width: int | None, parts: list[nn.Module]) -> None:
        super().__init__()
        self.entry = nn.Identity() if width is None else _entry(width)
        self.parts = nn.ModuleList(parts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.entry(x_BCHW)
        found = [part(x_BCHW) for part in self.parts]
        return torch.cat([y if y.dim() == 2 else _mean(y) for y in found], dim=1)


def chain_probe(width: int, part: Callable[[], nn.Module], side: int) -> Probe:
    """Of a part that keeps its map (B, width, side, side).

    part makes one with random weights. The same for the same arguments, in eval mode.
    """
    return _probe(lambda parts: Chain(width, parts), part, side)


def fan_probe(width: int | None, part: Callable[[], nn.Module], side: int) -> Probe:
    """Of any part that takes a map (B, width, side, side), or for None the pictures themselves."""
    return _probe(lambda parts: Fan(width, parts), part, side)


def _probe(
    network: Callable[[list[nn.Module]], nn.Module], part: Callable[[], nn.Module], side: int
) -> Probe:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        short, long = (
            _awake(network([part() for _ in range(count)]), side) for count in (1, 1 + TIMES)
        )
    return Probe(short, long, TIMES, side)


def _entry(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1, bias=False), nn.ReLU())


def _mean(x_BCHW: Tensor) -> Tensor:
    # keepdim: XNNPACK takes a mean over height and width in this form only.
    return x_BCHW.mean((2, 3), keepdim=True).flatten(1)


def _awake(network: nn.Module, side: int) -> nn.Module:
    """No gamma near zero, statistics settled on noise: no value vanishes or grows on its way."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.1, 0.1)
    count = max(PICTURES, -(-POSITIONS // side**2))
    settle_statistics(network, [torch.randn(count, 3, side, side)])
    return network

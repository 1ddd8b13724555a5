"""Rewrites: exact, only where they should, and only for the targets that need them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from converters.lower.base import TARGETS
from converters.lower.rewrites import REWRITES, apply_rewrites

OFFSET = "input offset one row wide"


class Offset(nn.Module):
    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.register_buffer("mean", torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean)


def exported(module: nn.Module, x: Tensor) -> GraphModule:
    graph = torch.export.export(module.eval(), (x,)).module()
    assert isinstance(graph, GraphModule)
    return graph


def test_offset_becomes_a_row_and_stays_exact() -> None:
    x = torch.rand(1, 3, 6, 10)
    module = Offset(3, (1, 3, 1, 1))
    graph = exported(module, x)
    assert apply_rewrites("tflite", graph) == {OFFSET: 1}
    sub = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.sub.Tensor)
    assert tuple(getattr(graph, sub.args[1].target).shape) == (1, 3, 1, 10)
    with torch.no_grad():
        assert torch.equal(graph(x), module(x))


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "tflite"])
def test_other_targets_keep_the_small_constant(target: str) -> None:
    assert apply_rewrites(target, exported(Offset(3, (1, 3, 1, 1)), torch.rand(1, 3, 6, 6))) == {}


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (1, 1, 6, 6), (1, 1, 1, 1)])
def test_other_constants_stay(shape: tuple[int, ...]) -> None:
    channels = 16 if shape[1] == 16 else 3
    module, x = Offset(channels, shape), torch.rand(1, channels, 6, 6)
    assert apply_rewrites("tflite", exported(module, x)) == {}


def test_every_rewrite_says_who_needs_it_and_why() -> None:
    for rewrite in REWRITES:
        assert set(rewrite.targets) <= set(TARGETS)
        assert rewrite.targets
        assert len(rewrite.why) > 40

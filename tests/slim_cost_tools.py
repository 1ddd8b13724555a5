"""A tiny family with parts that a latency table can measure, for workers to import too."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from converters.slim.cost.meters import Effort
from converters.slim.cost.records import Entry
from converters.slim.cost.setup import Machine, Setup
from converters.slim.families.base import Part, Probe, Subnet

QUICK = Effort(runs=40, min_time_s=0.02)
TIMES = 4


class Block(nn.Module):
    """x + two 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


class Head(nn.Module):
    """Mean and linear."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


class Copies(nn.Module):
    """Several copies of a stem side by side, a mean after each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(nn.Conv2d(3, width, 4, 4) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([copy(x).mean((2, 3)) for copy in self.copies], 1)


@dataclass(frozen=True)
class TinyShape:
    """A stem to a quarter of the side, `depth` blocks, a head."""

    width: int
    depth: int

    def build(self, num_classes: int, input_size: int) -> nn.Module:
        blocks = [Block(self.width) for _ in range(self.depth)]
        stem = nn.Conv2d(3, self.width, 4, 4)
        return nn.Sequential(stem, *blocks, Head(self.width, num_classes)).eval()


class TinyFamily:
    """What the latency table asks of a family."""

    name = "tiny"

    def whole(self, shape: TinyShape) -> Subnet:
        return Subnet(shape, (tuple(range(shape.depth)),))

    def parts(self, shape: TinyShape, side: int, classes: int) -> Counter[Part]:
        return Counter(
            {
                Part(self.name, "stem", side, (shape.width,)): 1,
                Part(self.name, "block", side // 4, (shape.width,)): shape.depth,
                Part(self.name, "head", side // 4, (shape.width, classes)): 1,
            }
        )

    def probe(self, part: Part) -> Probe:
        torch.manual_seed(0)
        width = part.dims[0]
        if part.kind == "stem":
            return Probe(Copies(width, 1), Copies(width, 1 + TIMES), TIMES, part.side)
        if part.kind == "block":
            long = [Block(width) for _ in range(1 + TIMES)]
            return Probe(self._around(part, long[:1]), self._around(part, long), TIMES, part.side)
        if part.kind == "head":
            heads = [Head(*part.dims) for _ in range(1 + TIMES)]
            return Probe(self._heads(part, heads[:1]), self._heads(part, heads), TIMES, part.side)
        if part.kind == "backwards":
            long = [Block(width) for _ in range(1 + TIMES)]
            return Probe(self._around(part, long), self._around(part, long[:1]), TIMES, part.side)
        if part.kind == "deadly":
            os._exit(3)
        raise ZeroDivisionError(f"no part {part.kind}")

    def random(self, shape: TinyShape, rng: Any) -> Subnet:
        width = 16 * int(rng.integers(1, shape.width // 16 + 1))
        depth = int(rng.integers(1, shape.depth + 1))
        return Subnet(TinyShape(width, depth), (tuple(range(depth)),))

    def _around(self, part: Part, blocks: list[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, part.dims[0], 1), *blocks, Head(part.dims[0], 8))

    def _heads(self, part: Part, heads: list[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, part.dims[0], 1), Several(heads))


class Several(nn.Module):
    """The answers of several heads, side by side."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], 1)


def a_setup(**changes: Any) -> Setup:
    """A made-up setup."""
    board = Machine("Board", "host", "aarch64", "CPU", 4, 4, ("neon",), "performance")
    setup = Setup("onnx", "onnxruntime", "1.0", "0.1.0", board, 1, "fp32", (("torch", "2.0"),))
    return replace(setup, **changes)


def a_part(width: int = 16, kind: str = "block") -> Part:
    return Part("tiny", kind, 8, (width,))


def an_entry(part: Part, ms: float = 1.0) -> Entry:
    return Entry(part, ms, 0.01, 200, TIMES, datetime(2026, 11, 21, tzinfo=UTC).isoformat())

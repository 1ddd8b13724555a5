"""A tiny family that can be slimmed, with a supernet, and a clock that adds up its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from converters.slim.candidates import Ahead
from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Probe, Subnet
from converters.slim.importance import of_block, of_space, scores
from converters.slim.slicing import strongest, take
from edgevit.models.shapes import Shape, register_shape

NAME = "tinyslim"
GRID = 8
SIDE = 32


@register_shape(NAME)
@dataclass(frozen=True)
class TinyShape:
    """Channels and blocks of two stages."""

    widths: tuple[int, int]
    depths: tuple[int, int]

    def build(self, num_classes: int, input_size: int) -> TinyNet:
        return TinyNet(self, num_classes).eval()


WHOLE = TinyShape((24, 32), (3, 3))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(torch.relu(self.norm(self.conv(x))))


class TinyNet(nn.Module):
    def __init__(self, shape: TinyShape, classes: int) -> None:
        super().__init__()
        self.shape = shape
        first, second = shape.widths
        self.stem = nn.Conv2d(3, first, 4, stride=4)
        self.stem_norm = nn.BatchNorm2d(first)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width) for _ in range(depth))
            for width, depth in zip(shape.widths, shape.depths, strict=True)
        )
        self.down = nn.Conv2d(first, second, 2, stride=2)
        self.head = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        for block in self.stages[0]:
            x = block(x)
        x = self.down(x)
        for block in self.stages[1]:
            x = block(x)
        return self.head(x.mean((2, 3)))


class TinySupernet(TinyNet):
    """The largest network, with noise on the weights' use in training: random widths."""


SPACES = {
    "stem.weight": ("s0", None, None, None),
    "stem.bias": ("s0",),
    "down.weight": ("s1", "s0", None, None),
    "down.bias": ("s1",),
    "head.weight": (None, "s1"),
    "head.bias": (None,),
}


def spaces_of(source: TinyNet) -> dict[str, tuple[str | None, ...]]:
    found: dict[str, tuple[str | None, ...]] = {}
    for name, value in source.state_dict().items():
        if name in SPACES:
            found[name] = SPACES[name]
        elif name.startswith("stem_norm"):
            found[name] = ("s0",) * min(value.dim(), 1)
        elif name.startswith("stages"):
            space = f"s{name.split('.')[1]}"
            lies: list[str | None] = [None] * value.dim()
            if lies:
                lies[0] = space
            if ".mix.weight" in name:
                lies[1] = space
            found[name] = tuple(lies)
    return found


class TinyFamily:
    name = NAME

    def whole(self, shape: Shape) -> Subnet:
        return Subnet(shape, tuple(tuple(range(depth)) for depth in shape.depths))

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        (first, second), (d1, d2) = shape.widths, shape.depths
        parts = Counter({Part(NAME, "stem", side, (first,)): 1})
        parts[Part(NAME, "block", side // 4, (first,))] += d1
        parts[Part(NAME, "down", side // 4, (first, second))] += 1
        parts[Part(NAME, "block", side // 8, (second,))] += d2
        parts[Part(NAME, "head", side // 8, (second, classes))] += 1
        return parts

    def probe(self, part: Part) -> Probe:
        raise SlimError("the tests' table is whole")

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        found = []
        for stage, blocks in enumerate(subnet.blocks):
            if len(blocks) > 1:
                worth = [importance.blocks[stage][block] for block in blocks]
                found.append(Action("drop", stage, blocks[worth.index(min(worth))]))
            if subnet.shape.widths[stage] > GRID:
                found.append(Action("narrow", stage))
        return found

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        if action not in self.actions(subnet, importance):
            raise SlimError(f"cannot {action}")
        blocks, widths = list(subnet.blocks), list(subnet.shape.widths)
        if action.kind == "drop":
            blocks[action.stage] = tuple(b for b in blocks[action.stage] if b != action.block)
        else:
            widths[action.stage] -= GRID
        depths = tuple(map(len, blocks))
        return Subnet(TinyShape(tuple(widths), depths), tuple(blocks))

    def random(self, shape: Shape, rng: Any) -> Subnet:
        widths = tuple(GRID * int(rng.integers(1, w // GRID, endpoint=True)) for w in shape.widths)
        blocks = tuple(
            tuple(sorted(int(b) for b in rng.permutation(d)[: rng.integers(1, d, endpoint=True)]))
            for d in shape.depths
        )
        return Subnet(TinyShape(widths, tuple(map(len, blocks))), blocks)

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        widths = tuple(max(GRID, GRID * round(w * factor / GRID)) for w in shape.widths)
        return self.whole(replace(shape, widths=widths))

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        return TinySupernet(shape, classes)

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        found, spaces = scores(source, batches), spaces_of(source)
        channels = {space: of_space(found, spaces, space) for space in ("s0", "s1")}
        blocks = tuple(
            tuple(
                of_block(found, [f"stages.{s}.{b}.mix.weight", f"stages.{s}.{b}.mix.bias"])
                for b in range(len(stage))
            )
            for s, stage in enumerate(source.stages)
        )
        return Importance(blocks, channels)

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        target = subnet.shape.build(classes, side)
        names = {}
        for name in target.state_dict():
            head, *rest = name.split(".")
            if head == "stages":
                stage, block, *more = rest
                own = subnet.blocks[int(stage)][int(block)]
                names[name] = ".".join(["stages", stage, str(own), *more])
            else:
                names[name] = name
        kept = {
            f"s{stage}": strongest(importance.channels[f"s{stage}"], width)
            for stage, width in enumerate(subnet.shape.widths)
        }
        take(source.state_dict(), target, names, spaces_of(source), kept)
        return target


def part_ms(part: Part) -> float:
    """A made-up latency: of each kind its own, growing with the sizes; no two steps alike."""
    size = 1.0
    for dim in part.dims:
        size *= dim
    return {"stem": 2e-3, "block": 3e-4, "down": 2e-4, "head": 1e-4}[part.kind] * (
        size if part.kind != "block" else size**2 / 8 + size
    ) + 1e-3


@dataclass
class Sum:
    """A clock that adds up parts, and measures `skew` times that."""

    skew: float = 1.0
    measured: int = 0

    def predict(self, shapes: Sequence[Shape], ahead: Ahead | None = None) -> list[float]:
        return [self.rough(shape) for shape in shapes]

    def rough(self, shape: Shape) -> float:
        parts = TinyFamily().parts(shape, SIDE, 10)
        return sum(count * part_ms(part) for part, count in parts.items())

    def measure(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        self.measured += 1
        return {name: self.skew * self.rough(module.shape) for name, module in modules.items()}

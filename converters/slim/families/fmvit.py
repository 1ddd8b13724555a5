"""FMViT: a trained network is slimmed as it is, by Taylor importance, and needs no supernet.

Actions: a stage loses its least important block, a convolutional or a mixing one, or becomes
narrower by 32 channels, which is one head for two steps. The stem is at most half as wide as the
first stage; all other widths follow from the stages', as the family has them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Probe, Subnet
from converters.slim.families.fmvit_branches import cut_branches
from converters.slim.families.fmvit_spaces import (
    kept_of,
    multi_groups,
    scores_of,
    silencers,
    spaces_of,
)
from converters.slim.families.probing import chain_probe, fan_probe
from converters.slim.families.trained import (
    DROP,
    NARROW,
    check_blocks,
    check_factor,
    cut,
    grid,
    least_important,
    leave_out,
    nearest,
    position_of,
    some,
    source_names,
    without,
)
from converters.slim.importance import of_block, scores
from converters.slim.slicing import take
from edgevit.models.fmvit import (
    CFB,
    CONV,
    FMB,
    MIX,
    STAGES,
    STRIDE,
    VALUE_DIM,
    ConvBN,
    FMViT,
    FMViTShape,
    Stem,
    shrink_of,
)
from edgevit.models.registry import check_side
from edgevit.models.shapes import Shape

STEP = 32
LEAST = {CONV: 32, MIX: 2 * VALUE_DIM}  # channels of a stage with such blocks
KINDS = {CONV: "cfb", MIX: "fmb"}


class FMViTFamily:
    """The family as the search sees it; see Family."""

    name = "fmvit"

    def whole(self, shape: Shape) -> Subnet:
        """The subnet that is all of a network of this shape."""
        return Subnet(shape, tuple(tuple(range(len(kinds))) for kinds in _own(shape).kinds))

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        """The stem, the downsamplings, all blocks and the head."""
        own = _own(shape)
        check_side("FMViT", side, STRIDE)
        found = Counter([Part(self.name, "stem", side, (own.stem_dim, own.widths[0]))])
        side //= 4
        for stage, (width, kinds) in enumerate(zip(own.widths, own.kinds, strict=True)):
            if stage:
                found[Part(self.name, "downsample", side, (own.widths[stage - 1], width))] += 1
                side //= 2
            for kind in kinds:
                dims = (width, shrink_of(stage)) if kind == MIX else (width,)
                found[Part(self.name, KINDS[kind], side, dims)] += 1
        found[Part(self.name, "head", side, (own.widths[-1], classes))] += 1
        return found

    def module(self, part: Part) -> nn.Module:
        """The layers of a part, with random weights. Raises SlimError for a kind it has not."""
        match part.kind, part.dims:
            case "stem", (hidden, width):
                return Stem(hidden, width)
            case "downsample", (before, width):
                return ConvBN(before, width, 3, stride=2)
            case "cfb", (width,):
                return CFB(width)
            case "fmb", (width, shrink):
                return FMB(width, shrink)
            case "head", (width, classes):
                return _Head(width, classes)
        raise SlimError(f"FMViT has no part '{part.kind}' with the sizes {part.dims}")

    def probe(self, part: Part) -> Probe:
        """The two networks that show a part's latency."""
        if part.kind in KINDS.values():
            return chain_probe(part.dims[0], lambda: self.module(part), part.side)
        width = None if part.kind == "stem" else part.dims[0]
        return fan_probe(width, lambda: self.module(part), part.side)

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        """For each stage: its least important block goes; it becomes narrower by a step."""
        shape = _own(subnet.shape)
        found = []
        for stage in range(STAGES):
            if len(shape.kinds[stage]) > 1:
                weakest = least_important(subnet.blocks, stage, importance)
                found.append(Action(DROP, stage, weakest))
            if len(_grid(shape.widths[stage], shape.kinds[stage])) > 1:
                found.append(Action(NARROW, stage))
        return found

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        """The smaller subnet. Raises SlimError for an action that this subnet does not have."""
        shape, stage = _own(subnet.shape), action.stage
        if action.kind == DROP:
            position = position_of(subnet.blocks, action)
            kinds = cut(shape.kinds, stage, leave_out(shape.kinds[stage], position))
            blocks = without(subnet.blocks, stage, position)
            return Subnet(replace(shape, kinds=kinds), blocks)
        inside = 0 <= stage < STAGES
        options = _grid(shape.widths[stage], shape.kinds[stage]) if inside else ()
        if action.kind != NARROW or len(options) < 2:
            raise SlimError(f"cannot {action} of {shape}")
        return Subnet(_narrowed(shape, cut(shape.widths, stage, options[-2])), subnet.blocks)

    def random(self, shape: Shape, rng: Any) -> Subnet:
        """A random subnet of it, from a numpy Generator, evenly over depths and widths."""
        own = _own(shape)
        blocks = tuple(some(len(kinds), rng) for kinds in own.kinds)
        kinds = tuple(
            tuple(row[block] for block in kept) for row, kept in zip(own.kinds, blocks, strict=True)
        )
        options = [_grid(width, row) for width, row in zip(own.widths, kinds, strict=True)]
        widths = tuple(row[int(rng.integers(len(row)))] for row in options)
        return Subnet(_narrowed(replace(own, kinds=kinds), widths), blocks)

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        """Every width next to `factor` times its own, the depths as they are. Raises SlimError."""
        check_factor(factor)
        own = _own(shape)
        rows = zip(own.widths, own.kinds, strict=True)
        widths = tuple(nearest(_grid(width, kinds), factor * width) for width, kinds in rows)
        return Subnet(_narrowed(own, widths), self.whole(shape).blocks)

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        """The largest network itself, to train as it is: its blocks need no choices to be left."""
        return _own(shape).build(classes, side)

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        """Taylor scores of a trained network's blocks and channels. Raises SlimError."""
        shape = _network(source).shape
        found = scores(source, batches)
        blocks = tuple(
            tuple(of_block(found, silencers(shape, stage, block)) for block in range(len(kinds)))
            for stage, kinds in enumerate(shape.kinds)
        )
        return Importance(blocks, scores_of(shape, found))

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        """A network of the subnet's shape, in eval mode, with the weights of a trained network.

        Raises SlimError for a subnet that the source does not have.
        """
        whole, shape = _network(source).shape, _own(subnet.shape)
        check_blocks(subnet.blocks, [len(kinds) for kinds in whole.kinds])
        for kinds, row, blocks in zip(shape.kinds, whole.kinds, subnet.blocks, strict=True):
            if kinds != tuple(row[block] for block in blocks):
                raise SlimError(f"{shape} is not of the blocks {subnet.blocks} of {whole}")
        target = shape.build(classes, side)
        names = source_names(target.state_dict(), subnet.blocks, "stages.{stage}.{block}.", first=1)
        used = set(names.values())
        kept = kept_of(whole, shape, subnet.blocks, importance)
        state = {name: value.cpu() for name, value in source.state_dict().items()}
        spaces = dict(spaces_of(whole))
        for path, (inputs, outputs) in multi_groups(whole).items():
            if f"{path}.branches.0.conv.weight" in used:
                small = cut_branches(state, path, kept[inputs], kept[outputs])
                state |= small
                spaces |= {name: (None,) * value.dim() for name, value in small.items()}
        take(state, target, names, spaces, kept)
        return target


class _Head(nn.Module):
    """BatchNorm of the map, its mean over height and width, a linear map to logits (B, classes)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x_BCHW).mean((2, 3), keepdim=True).flatten(1))
        return logits


def _own(shape: Shape) -> FMViTShape:
    if not isinstance(shape, FMViTShape):
        raise SlimError(f"expected the shape of an FMViT, got {shape}")
    return shape


def _network(source: nn.Module) -> FMViT:
    if not isinstance(source, FMViT):
        raise SlimError(f"expected an FMViT to slim, got {type(source).__name__}")
    return source


def _grid(width: int, kinds: tuple[int, ...]) -> tuple[int, ...]:
    """The widths that a stage with such blocks may have, up to its own."""
    return grid(width, STEP, max(LEAST[kind] for kind in kinds))


def _narrowed(shape: FMViTShape, widths: tuple[int, ...]) -> FMViTShape:
    stem = shape.stem_dim if widths[0] == shape.widths[0] else min(shape.stem_dim, widths[0] // 2)
    return replace(shape, widths=widths, stem_dim=stem)

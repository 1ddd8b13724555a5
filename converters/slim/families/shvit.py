"""SHViT: a trained network is slimmed as it is, by Taylor importance, and needs no supernet.

Actions: a stage loses its least important block, or becomes narrower by 16 channels. What attends
keeps its share of the stage's channels in the source, to a multiple of 4; hidden widths follow from
the widths, as the family has them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Probe, Subnet
from converters.slim.families.probing import chain_probe, fan_probe
from converters.slim.families.shvit_spaces import (
    attended_counts,
    kept_of,
    scores_of,
    silencers,
    spaces_of,
)
from converters.slim.families.trained import (
    DROP,
    NARROW,
    check_blocks,
    check_factor,
    cut,
    grid,
    least_important,
    nearest,
    position_of,
    some,
    source_names,
    without,
)
from converters.slim.importance import of_block, scores
from converters.slim.slicing import take
from edgevit.models.shapes import Shape
from edgevit.models.shvit import STAGES, Block, BNLinear, PatchMerging, SHViT, SHViTShape, Stem

STEP = 16
LEAST = 16  # channels of a stage
ATTENDED_STEP = 4


class SHViTFamily:
    """The family as the search sees it; see Family."""

    name = "shvit"

    def whole(self, shape: Shape) -> Subnet:
        """The subnet that is all of a network of this shape."""
        return Subnet(shape, tuple(tuple(range(depth)) for depth in _own(shape).depths))

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        """The stem, all blocks, the mergings and the head.

        A downsampling is a merging between what are two blocks without attention.
        """
        own = _own(shape)
        found = Counter([Part(self.name, "stem", side, (own.widths[0],))])
        side = _halved(side, 4)
        for stage, (width, depth, attended) in enumerate(
            zip(own.widths, own.depths, own.attention_dims, strict=True)
        ):
            if stage:
                before = own.widths[stage - 1]
                found[Part(self.name, "block", side, (before, 0))] += 1
                found[Part(self.name, "merge", side, (before, width))] += 1
                side = _halved(side)
                found[Part(self.name, "block", side, (width, 0))] += 1
            found[Part(self.name, "block", side, (width, attended))] += depth
        found[Part(self.name, "head", side, (own.widths[-1], classes, own.heads))] += 1
        return found

    def module(self, part: Part) -> nn.Module:
        """The layers of a part, with random weights. Raises SlimError for a kind it has not."""
        match part.kind, part.dims:
            case "stem", (width,):
                return Stem(width)
            case "block", (width, attended):
                return Block(width, attended)
            case "merge", (before, width):
                return PatchMerging(before, width)
            case "head", (width, classes, heads):
                return _Head(width, classes, heads)
        raise SlimError(f"SHViT has no part '{part.kind}' with the sizes {part.dims}")

    def probe(self, part: Part) -> Probe:
        """The two networks that show a part's latency."""
        if part.kind == "block":
            return chain_probe(part.dims[0], lambda: self.module(part), part.side)
        width = None if part.kind == "stem" else part.dims[0]
        return fan_probe(width, lambda: self.module(part), part.side)

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        """For each stage: its least important block goes; it becomes narrower by a step."""
        shape = _own(subnet.shape)
        found = []
        for stage in range(STAGES):
            if shape.depths[stage] > 1:
                weakest = least_important(subnet.blocks, stage, importance)
                found.append(Action(DROP, stage, weakest))
            if len(grid(shape.widths[stage], STEP, LEAST)) > 1:
                found.append(Action(NARROW, stage))
        return found

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        """The smaller subnet. Raises SlimError for an action that this subnet does not have."""
        shape, stage = _own(subnet.shape), action.stage
        if action.kind == DROP:
            position = position_of(subnet.blocks, action)
            depths = cut(shape.depths, stage, shape.depths[stage] - 1)
            blocks = without(subnet.blocks, stage, position)
            return Subnet(replace(shape, depths=depths), blocks)
        options = grid(shape.widths[stage], STEP, LEAST) if 0 <= stage < STAGES else ()
        if action.kind != NARROW or len(options) < 2:
            raise SlimError(f"cannot {action} of {shape}")
        attended, width = attended_counts(importance.channels, stage)
        return Subnet(
            replace(
                shape,
                widths=cut(shape.widths, stage, options[-2]),
                attention_dims=cut(
                    shape.attention_dims, stage, _attended(options[-2], attended, width)
                ),
            ),
            subnet.blocks,
        )

    def random(self, shape: Shape, rng: Any) -> Subnet:
        """A random subnet of it, from a numpy Generator, evenly over depths and widths."""
        own = _own(shape)
        blocks = tuple(some(depth, rng) for depth in own.depths)
        options = [grid(width, STEP, LEAST) for width in own.widths]
        widths = tuple(row[int(rng.integers(len(row)))] for row in options)
        return Subnet(replace(_narrowed(own, widths), depths=tuple(map(len, blocks))), blocks)

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        """Every width next to `factor` times its own, the depths as they are. Raises SlimError."""
        check_factor(factor)
        own = _own(shape)
        widths = tuple(nearest(grid(w, STEP, LEAST), factor * w) for w in own.widths)
        return Subnet(_narrowed(own, widths), self.whole(shape).blocks)

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        """The largest network itself, to train as it is: its blocks need no choices to be left."""
        return _own(shape).build(classes, side)

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        """Taylor scores of a trained network's blocks and channels. Raises SlimError."""
        shape = _network(source).shape
        found = scores(source, batches)
        blocks = tuple(
            tuple(of_block(found, silencers(shape, stage, block)) for block in range(depth))
            for stage, depth in enumerate(shape.depths)
        )
        return Importance(blocks, scores_of(shape, found))

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        """A network of the subnet's shape, in eval mode, with the weights of a trained network.

        Raises SlimError for a subnet that the source does not have.
        """
        whole, shape = _network(source).shape, _own(subnet.shape)
        check_blocks(subnet.blocks, whole.depths)
        if tuple(map(len, subnet.blocks)) != shape.depths or shape.heads != whole.heads:
            raise SlimError(f"{shape} does not have the blocks {subnet.blocks} and heads of a part")
        target = shape.build(classes, side)
        names = source_names(target.state_dict(), subnet.blocks, "stages.{stage}.blocks.{block}.")
        kept = kept_of(whole, shape, importance)
        take(source.state_dict(), target, names, spaces_of(whole), kept)
        return target


class _Head(nn.Module):
    """Mean over height and width, then one head or the mean of two; (B, C, H, W) to logits."""

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(BNLinear(width, classes) for _ in range(heads))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BC = x_BCHW.mean((2, 3), keepdim=True).flatten(1)
        logits: list[Tensor] = [head(x_BC) for head in self.heads]
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2


def _own(shape: Shape) -> SHViTShape:
    if not isinstance(shape, SHViTShape):
        raise SlimError(f"expected the shape of an SHViT, got {shape}")
    return shape


def _network(source: nn.Module) -> SHViT:
    if not isinstance(source, SHViT):
        raise SlimError(f"expected an SHViT to slim, got {type(source).__name__}")
    return source


def _halved(side: int, times: int = 1) -> int:
    for _ in range(times):
        side = -(-side // 2)
    return side


def _narrowed(shape: SHViTShape, widths: tuple[int, ...]) -> SHViTShape:
    rows = zip(widths, shape.attention_dims, shape.widths, strict=True)
    return replace(shape, widths=widths, attention_dims=tuple(_attended(*row) for row in rows))


def _attended(width: int, attended: int, whole: int) -> int:
    """Of a stage that is `width` of `whole` channels wide, how many attend of the `attended`.

    Neither more than attend in the source, nor so few that others must attend instead.
    """
    if not attended:
        return 0
    wanted = round(attended * width / whole / ATTENDED_STEP) * ATTENDED_STEP
    least = max(min(ATTENDED_STEP, attended), width - (whole - attended))
    return min(max(wanted, least), attended)

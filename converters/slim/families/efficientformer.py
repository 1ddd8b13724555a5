"""EfficientFormer V1 as a family to slim: the three actions of its paper (arXiv 2206.01191, 3.3).

Drop a block, turn the first attention block into a pooling block, narrow a stage. What attends
stays the last of stages 3 and 4, and every stage keeps a block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Importance, Part, Probe, Subnet
from converters.slim.families.efficientformer_cut import blocks_of, cut, spaces_of
from converters.slim.families.efficientformer_parts import FAMILY, parts_of, probe_of
from converters.slim.importance import of_block, of_space, scores
from converters.slim.supernets.efficientformer import EfficientFormerSupernet
from edgevit.models.efficientformer import STAGES, EfficientFormerShape
from edgevit.models.shapes import Shape

GRID = 16  # channels
DROP = "drop"
POOL = "attention to pooling"
NARROW, NARROW_WEAKEST = "narrow", "narrow the weakest"


class EfficientFormerFamily:
    """The Family of EfficientFormer. A block is an action's by its number in the source."""

    name = FAMILY

    def whole(self, shape: Shape) -> Subnet:
        """All of a network of this shape; of a supernet's, with attention in all of stages 3, 4."""
        return Subnet(shape, tuple(tuple(range(depth)) for depth in _own(shape).depths))

    def parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        """What it consists of, for pictures of side x side pixels."""
        return parts_of(_own(shape), side, classes)

    def probe(self, part: Part) -> Probe:
        """The two networks that show a part's latency."""
        return probe_of(part)

    def actions(self, subnet: Subnet, importance: Importance) -> list[Action]:
        """The least important block of each stage, the first that attends, each stage's width.

        The stage whose blocks are worth least in sum, of those that can be narrowed, is marked.
        """
        shape = _own(subnet.shape)
        worth = [
            [importance.blocks[stage][block] for block in blocks]
            for stage, blocks in enumerate(subnet.blocks)
        ]
        found = [
            Action(DROP, stage, blocks[worth[stage].index(min(worth[stage]))])
            for stage, blocks in enumerate(subnet.blocks)
            if len(blocks) > 1
        ]
        first = _first_attention(subnet)
        if first is not None:
            found.append(Action(POOL, *first))
        narrow = [stage for stage in range(STAGES) if shape.widths[stage] > GRID]
        weakest = min(narrow, key=lambda stage: sum(worth[stage]), default=None)
        return found + [
            Action(NARROW_WEAKEST if stage == weakest else NARROW, stage) for stage in narrow
        ]

    def apply(self, subnet: Subnet, action: Action, importance: Importance) -> Subnet:
        """The smaller subnet. Raises SlimError for an action that this subnet does not have."""
        shape, stage, block = _own(subnet.shape), action.stage, action.block
        blocks = subnet.blocks[stage] if 0 <= stage < STAGES else ()
        if action.kind == DROP and block in blocks and len(blocks) > 1:
            place = blocks.index(block)
            attends = place >= len(blocks) - shape.attention_depths[stage]
            smaller = replace(
                shape,
                depths=_with(shape.depths, stage, len(blocks) - 1),
                attention_depths=_with(
                    shape.attention_depths, stage, shape.attention_depths[stage] - attends
                ),
            )
            left = (*blocks[:place], *blocks[place + 1 :])
            kept = (*subnet.blocks[:stage], left, *subnet.blocks[stage + 1 :])
            return Subnet(smaller, kept)
        if action.kind == POOL and (stage, block) == _first_attention(subnet):
            fewer = _with(shape.attention_depths, stage, shape.attention_depths[stage] - 1)
            return replace(subnet, shape=replace(shape, attention_depths=fewer))
        if action.kind in (NARROW, NARROW_WEAKEST) and blocks and shape.widths[stage] > GRID:
            width = (shape.widths[stage] - 1) // GRID * GRID
            return replace(subnet, shape=replace(shape, widths=_with(shape.widths, stage, width)))
        raise SlimError(f"cannot {action}: the subnet {shape} of blocks {subnet.blocks} has none")

    def random(self, shape: Shape, rng: Any) -> Subnet:
        """Evenly over each stage's depths and widths, and over how many blocks attend."""
        shape = _own(shape)
        depths = [int(rng.integers(1, depth, endpoint=True)) for depth in shape.depths]
        blocks = tuple(
            tuple(sorted(map(int, rng.choice(full, size=depth, replace=False))))
            for full, depth in zip(shape.depths, depths, strict=True)
        )
        third, fourth = (
            sum(
                block >= shape.depths[stage] - shape.attention_depths[stage]
                for block in blocks[stage]
            )
            for stage in (2, 3)
        )
        most = fourth + (third if fourth == depths[3] else 0)
        attending = int(rng.integers(0, most, endpoint=True))
        widths = [
            GRID * int(rng.integers(1, width // GRID, endpoint=True)) if width > GRID else width
            for width in shape.widths
        ]
        attention = (0, 0, max(attending - fourth, 0), min(attending, fourth))
        w1, w2, w3, w4 = widths
        d1, d2, d3, d4 = depths
        return Subnet(EfficientFormerShape((w1, w2, w3, w4), (d1, d2, d3, d4), attention), blocks)

    def scaled(self, shape: Shape, factor: float) -> Subnet:
        """Every width times `factor`, to the nearest multiple of 16, at least 16."""
        w1, w2, w3, w4 = (
            max(GRID * round(width * factor / GRID), GRID) for width in _own(shape).widths
        )
        return self.whole(replace(_own(shape), widths=(w1, w2, w3, w4)))

    def supernet(self, shape: Shape, classes: int, side: int) -> nn.Module:
        """The MetaPath supernet. Its own `shape` has attention in all of stages 3 and 4."""
        return EfficientFormerSupernet(_own(shape), classes, side).eval()

    def importance(self, source: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Importance:
        """Blocks by a supernet's alphas, or else by what silencing them does to the loss.

        Channels always by what silencing them does, of every space of the source.
        """
        spaces, names = spaces_of(source), blocks_of(source)
        found = scores(source, batches)
        channels = {
            space: of_space(found, spaces, space)
            for space in dict.fromkeys(s for lies in spaces.values() for s in lies if s)
        }
        if isinstance(source, EfficientFormerSupernet):
            return Importance(_by_alphas(source), channels)
        worth = tuple(
            tuple(
                of_block(found, [f"{name}.{scale}.gamma" for scale in ("ls1", "ls2")])
                for each in blocks
                for name in each.values()
            )
            for blocks in names
        )
        return Importance(worth, channels)

    def inherit(
        self, source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
    ) -> nn.Module:
        """The subnet's network with the source's weights, in eval mode.

        Where a trained network attends and the subnet pools, the block keeps its MLP
        (efficientformer_cut.pooling_from_attention); a supernet has a pooling block of its own.
        """
        return cut(source, subnet, importance, classes, side)


def _own(shape: Shape) -> EfficientFormerShape:
    if not isinstance(shape, EfficientFormerShape):
        raise SlimError(f"{shape} is no shape of an EfficientFormer")
    return shape


def _with(values: tuple[int, int, int, int], index: int, value: int) -> tuple[int, int, int, int]:
    """The same four with another one at `index`."""
    first, second, third, fourth = (value if i == index else v for i, v in enumerate(values))
    return first, second, third, fourth


def _first_attention(subnet: Subnet) -> tuple[int, int] | None:
    """Stage and number of the first block that attends."""
    for stage, attending in enumerate(_own(subnet.shape).attention_depths):
        if attending:
            return stage, subnet.blocks[stage][-attending]
    return None


def _by_alphas(source: EfficientFormerSupernet) -> tuple[tuple[float, ...], ...]:
    """What a block does, over what nothing in its place does, of the softmaxed alphas.

    That is alpha_4D / alpha_I in stages 1 and 2, (alpha_3D + alpha_4D) / alpha_I after.
    """
    return tuple(
        tuple(float(1 / block.alpha.detach().double().softmax(0)[-1] - 1) for block in blocks)
        for blocks in source.metas()
    )

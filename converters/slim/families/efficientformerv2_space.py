"""The search space of EfficientFormerV2: its subnets, and which channels can be cut together.

The subnets of a network are those with fewer blocks, fewer of them attending, narrower stages and
smaller FFN ratios. A stage of width C may have any multiple of 8 from C/2 to C, of which at most
`WIDTHS` evenly spread ones are in the space: each needs BatchNorms of its own in the supernet, and
training enough.

Channels lie in three kinds of spaces: `stem` (between its two convolutions), `stageI` (the residual
stream of stage I), and `hiddenI.J` (inside the FFN of block J of stage I); all count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from converters.slim.errors import SlimError
from converters.slim.families.base import Subnet
from converters.slim.slicing import Spaces
from edgevit.models.efficientformerv2 import EfficientFormerV2Shape

WIDTH_STEP = 8
WIDTHS = 5
STAGES = range(4)
ATTENDING = (2, 3)  # the stages whose last blocks may attend

Draw = Callable[[int], int]
"""A random whole number from 0 to less than the given one, evenly."""


class Layer(NamedTuple):
    """In which spaces the outputs and inputs of a layer lie, and what its statistics hang on.

    None for channels that are never cut; a depthwise convolution mixes none, so it has no inputs.
    """

    out: str | None
    inp: str | None
    settled_by: tuple[str, ...] = ()

    def is_in(self, sizes: Mapping[str, int]) -> bool:
        """Whether a network with spaces of these sizes has it."""
        return all(space in sizes for space in (self.out, self.inp, *self.settled_by) if space)

    def key(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The sizes that its statistics hang on."""
        return tuple(sizes[space] for space in self.settled_by)


def stage_space(stage: int) -> str:
    """The name of a stage's residual stream."""
    return f"stage{stage}"


def hidden_space(stage: int, block: int) -> str:
    """The name of the channels inside an FFN."""
    return f"hidden{stage}.{block}"


def shape_of(subnet: Subnet) -> EfficientFormerV2Shape:
    """The shape of a subnet. Raises SlimError for one of another family."""
    return own_shape(subnet.shape)


def own_shape(shape: object) -> EfficientFormerV2Shape:
    """The same shape. Raises SlimError for one of another family."""
    if not isinstance(shape, EfficientFormerV2Shape):
        raise SlimError(f"expected the shape of an EfficientFormerV2, got {shape}")
    return shape


def grid(width: int) -> tuple[int, ...]:
    """The widths that a stage of this width may have, ascending, its own last."""
    below = range(-(-width // 2 // WIDTH_STEP) * WIDTH_STEP, width, WIDTH_STEP)
    every = (*below, width)
    last = len(every) - 1
    count = min(WIDTHS, len(every))
    return tuple(every[round(i * last / (count - 1))] for i in range(count)) if last else every


def whole(shape: EfficientFormerV2Shape) -> Subnet:
    """All of a network."""
    return Subnet(shape, tuple(tuple(range(len(row))) for row in shape.mlp_ratios))


def smallest(shape: EfficientFormerV2Shape) -> Subnet:
    """The smallest subnet: every stage at its least width, its last block alone, ratio 1."""
    least = EfficientFormerV2Shape(
        tuple(grid(width)[0] for width in shape.widths), ((1,),) * len(STAGES), (0, 0)
    )
    return Subnet(least, tuple((len(row) - 1,) for row in shape.mlp_ratios))


def random_subnet(shape: EfficientFormerV2Shape, draw: Draw) -> Subnet:
    """A subnet with evenly drawn widths, depths, blocks of that depth, ratios and attention."""
    widths = tuple(options[draw(len(options))] for options in map(grid, shape.widths))
    blocks = tuple(_some(len(row), 1 + draw(len(row)), draw) for row in shape.mlp_ratios)
    ratios = tuple(
        tuple(1 + draw(row[block]) for block in kept)
        for row, kept in zip(shape.mlp_ratios, blocks, strict=True)
    )
    attention = tuple(draw(1 + _attending(shape, stage, blocks[stage])) for stage in ATTENDING)
    return Subnet(EfficientFormerV2Shape(widths, ratios, attention), blocks)


def narrowed(shape: EfficientFormerV2Shape, factor: float) -> Subnet:
    """All blocks, every stage at the width of its grid nearest to `factor` times its own."""
    widths = tuple(
        min(grid(width), key=lambda candidate: abs(candidate - factor * width))
        for width in shape.widths
    )
    return Subnet(replace(shape, widths=widths), whole(shape).blocks)


def attends(shape: EfficientFormerV2Shape, stage: int, position: int) -> bool:
    """Whether the block at this position of the stage does."""
    if stage not in ATTENDING:
        return False
    depth = len(shape.mlp_ratios[stage])
    return position >= depth - shape.attention_depths[stage - ATTENDING[0]]


def _attending(shape: EfficientFormerV2Shape, stage: int, kept: tuple[int, ...]) -> int:
    """How many of a stage's kept blocks can attend."""
    return sum(attends(shape, stage, block) for block in kept)


def _some(count: int, size: int, draw: Draw) -> tuple[int, ...]:
    """`size` of the numbers 0 to count - 1, ascending; every choice is as likely."""
    left = list(range(count))
    return tuple(sorted(left.pop(draw(len(left))) for _ in range(size)))


def check_part(subnet: Subnet, shape: EfficientFormerV2Shape) -> None:
    """Raise SlimError unless the subnet is in the space of a network of this shape."""
    part = shape_of(subnet)
    widths = all(width in grid(full) for width, full in zip(part.widths, shape.widths, strict=True))
    if not widths or not all(_is_within(subnet, shape, stage) for stage in STAGES):
        raise SlimError(f"{subnet} is no subnet of {shape}")


def _is_within(subnet: Subnet, shape: EfficientFormerV2Shape, stage: int) -> bool:
    """Whether a stage has blocks of the whole one, no wider FFNs and no other attention."""
    part, kept, full = shape_of(subnet), subnet.blocks[stage], shape.mlp_ratios[stage]
    return (
        len(kept) == len(part.mlp_ratios[stage])
        and list(kept) == sorted({block for block in kept if 0 <= block < len(full)})
        and all(
            ratio <= full[block] and attends(part, stage, at) <= attends(shape, stage, block)
            for at, (ratio, block) in enumerate(zip(part.mlp_ratios[stage], kept, strict=True))
        )
    )


def channels(subnet: Subnet) -> dict[str, int]:
    """How many channels each space has in a subnet; no entry for FFNs that it leaves out.

    Blocks are numbered as in the source.
    """
    shape = shape_of(subnet)
    found = {"stem": shape.widths[0] // 2}
    for stage in STAGES:
        width = shape.widths[stage]
        found[stage_space(stage)] = width
        for block, ratio in zip(subnet.blocks[stage], shape.mlp_ratios[stage], strict=True):
            found[hidden_space(stage, block)] = ratio * width
    return found


def layers(shape: EfficientFormerV2Shape) -> dict[str, Layer]:
    """Every layer of a network with weights that hang on a space, by the name of its module.

    A ConvBN is one layer.
    """
    found = {
        "stem.conv1": Layer("stem", None, ("stage0",)),
        "stem.conv2": Layer("stage0", "stem", ("stage0",)),
        "norm": Layer("stage3", None, ("stage3",)),
        "head": Layer(None, "stage3"),
        "head_dist": Layer(None, "stage3"),
    }
    for stage in STAGES[1:]:
        both = stage_space(stage - 1), stage_space(stage)
        found[f"stages.{stage}.downsample.conv"] = Layer(both[1], both[0], both)
    found |= _prefixed("stages.3.downsample.attn", _attention_downsample())
    for stage in STAGES:
        for block in range(len(shape.mlp_ratios[stage])):
            found |= _prefixed(f"stages.{stage}.blocks.{block}", _block(shape, stage, block))
    return found


def _attention_downsample() -> Iterator[tuple[str, Layer]]:
    before, after = stage_space(2), stage_space(3)
    yield "q.local", Layer(before, None)
    for name in ("q.proj", "k", "v"):
        yield name, Layer(None, before, (before,))
    yield "v_local", Layer(None, None, (before,))
    yield "proj", Layer(after, None, (before, after))


def _block(shape: EfficientFormerV2Shape, stage: int, block: int) -> Iterator[tuple[str, Layer]]:
    stream, hidden = stage_space(stage), hidden_space(stage, block)
    if attends(shape, stage, block):
        if stage == ATTENDING[0]:
            yield "token_mixer.stride_conv", Layer(stream, None, (stream,))
        for name in ("q", "k", "v"):
            yield f"token_mixer.{name}", Layer(None, stream, (stream,))
        yield "token_mixer.v_local", Layer(None, None, (stream,))
        yield "token_mixer.proj", Layer(stream, None, (stream,))
        yield "ls1", Layer(stream, None)
    yield "mlp.fc1", Layer(hidden, stream, (stream,))
    yield "mlp.mid", Layer(hidden, None, (stream,))
    yield "mlp.fc2", Layer(stream, hidden, (stream, hidden))
    yield "ls2", Layer(stream, None)


def choices(shape: EfficientFormerV2Shape, layer: Layer) -> list[dict[str, int]]:
    """Every combination of sizes that a layer's statistics hang on, with its most outputs there."""
    found: list[dict[str, int]] = [{}]
    for space in layer.settled_by:
        found = [{**sizes, space: size} for sizes in found for size in _sizes(shape, space, sizes)]
    if layer.out is not None and layer.out not in layer.settled_by:
        found = [{**sizes, layer.out: max(_sizes(shape, layer.out, sizes))} for sizes in found]
    return found


def _sizes(shape: EfficientFormerV2Shape, space: str, chosen: Mapping[str, int]) -> Sequence[int]:
    """The sizes that a space can have, where its stage has the width that is chosen."""
    if space == "stem":
        return [chosen["stage0"] // 2]
    if space.startswith("hidden"):
        stage, block = map(int, space.removeprefix("hidden").split("."))
        width = chosen[stage_space(stage)]
        return [width * ratio for ratio in range(1, shape.mlp_ratios[stage][block] + 1)]
    return grid(shape.widths[int(space.removeprefix("stage"))])


def _prefixed(prefix: str, found: Iterator[tuple[str, Layer]]) -> dict[str, Layer]:
    return {f"{prefix}.{name}": layer for name, layer in found}


def spaces_of(state: Mapping[str, Tensor], shape: EfficientFormerV2Shape) -> Spaces:
    """For every tensor of a network's state, the space of each of its dims."""
    known = layers(shape)
    found: dict[str, tuple[str | None, ...]] = {}
    for name, value in state.items():
        layer = known.get(layer_name(name))
        if layer is not None and value.dim():
            rest = value.dim() - 2
            both = (layer.out, layer.inp, *(None,) * rest)
            found[name] = both if value.dim() > 1 else (layer.out,)
    return found


def layer_name(name: str) -> str:
    """The layer that a tensor of a state belongs to."""
    path, _, _ = name.rpartition(".")
    return path.removesuffix(".conv").removesuffix(".bn")

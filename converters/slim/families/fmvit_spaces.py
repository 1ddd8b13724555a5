"""Which channels of an FMViT can only be cut together.

Spaces: `stem`; the residual stream `stageI` of stage I; in every block the hidden channels of its
MLP; in a mixing block its low frequency, each of its high ones, and the heads of its attention,
which go whole. Those inside a block bear the name of the module that writes them. The channels of a
grouped convolution lie in quarters, and as many stay of each, so that they stay in their groups;
only where heads go, and in what the blend takes in, they change them (fmvit_branches.py).
"""

# Stages and blocks count from 0, and a block's place in its stage from 1: the downsampling is 0.

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from converters.slim.errors import SlimError
from converters.slim.families.base import Importance
from converters.slim.families.trained import Blocks
from converters.slim.importance import Scores, changes, mean_square, of_space
from converters.slim.slicing import Spaces, strongest
from edgevit.models.fmvit import (
    HIGH_KERNELS,
    KEY_DIM,
    MIX,
    MLP_RATIO,
    STAGES,
    VALUE_DIM,
    FMViTShape,
    high_width,
    low_width,
)

QUARTERS = 4
HIGHS = range(len(HIGH_KERNELS))
STEM = "stem"

Lies = dict[str, tuple[str | None, ...]]


def spaces_of(shape: FMViTShape) -> Spaces:
    """For every tensor of a network of this shape, the space of each of its dims.

    For a grouped convolution that mixes channels, the space of all its inputs.
    """
    last = stream(STAGES - 1)
    found = _conv_bn("stem.0", STEM, None) | _conv_bn("stem.2", stream(0), STEM)
    found |= _norm("norm", last) | {"head.weight": (None, last)}
    for stage in range(1, STAGES):
        found |= _conv_bn(f"stages.{stage}.0", stream(stage), stream(stage - 1))
    for stage, path, kind in _every(shape):
        if kind == MIX:
            found |= _conv_bn(f"{path}.attention.shrink", f"{path}.low", None)
            for i in HIGHS:
                found |= _depthwise(f"{path}.high.{i}.mix", f"{path}.high.{i}")
        else:
            found |= _depthwise(f"{path}.mixer.0", stream(stage))
    for path, (inputs, outputs) in multi_groups(shape).items():
        found |= _conv_bn(f"{path}.branches.0", outputs, inputs)
        found |= _conv_bn(f"{path}.branches.1", outputs, inputs) | _norm(f"{path}.skip", outputs)
    return found


def multi_groups(shape: FMViTShape) -> dict[str, tuple[str, str]]:
    """The multi-group convolutions that mix channels: the spaces of their inputs and outputs."""
    found: dict[str, tuple[str, str]] = {}
    for stage, path, kind in _every(shape):
        own, hidden = stream(stage), f"{path}.mlp.fc1"
        found |= {f"{path}.mlp.fc1": (own, hidden), f"{path}.mlp.fc2": (hidden, own)}
        if kind != MIX:
            found[f"{path}.mixer.2"] = (own, own)
            continue
        low, attention = f"{path}.low", f"{path}.attention"
        found |= {
            low: (own, low),
            f"{attention}.q": (low, f"{attention}/keys"),
            f"{attention}.k": (low, f"{attention}/keys"),
            f"{attention}.v": (low, f"{attention}/values"),
            f"{attention}.proj": (f"{attention}/values", low),
            f"{path}.blend": (f"{path}/blended", own),
        }
        found |= {f"{path}.high.{i}.proj": (own, f"{path}.high.{i}") for i in HIGHS}
    return found


def sizes_of(shape: FMViTShape, blocks: Blocks) -> dict[str, int]:
    """How many channels, or heads, a network of this shape has in every space.

    blocks: those of the source that its blocks are; the spaces bear the source's names.
    """
    found = {STEM: shape.stem_dim}
    for stage, width in enumerate(shape.widths):
        found[stream(stage)] = width
        for kind, block in zip(shape.kinds[stage], blocks[stage], strict=True):
            path = path_of(stage, block)
            found[f"{path}.mlp.fc1"] = MLP_RATIO * width
            if kind == MIX:
                found[f"{path}.low"] = low_width(width)
                found[f"{path}.attention/heads"] = low_width(width) // VALUE_DIM
                found |= {f"{path}.high.{i}": high_width(width) for i in HIGHS}
    return found


def scores_of(shape: FMViTShape, found: Scores) -> dict[str, Tensor]:
    """A score for every channel of every space, (channels,), by the scores of the network."""
    spaces = spaces_of(shape)
    scores = {
        space: of_space(found, spaces, space) for space in (STEM, *map(stream, range(STAGES)))
    }
    for stage, path, kind in _every(shape):
        scores[f"{path}.mlp.fc1"] = of_space(found, spaces, f"{path}.mlp.fc1")
        if kind == MIX:
            low, high = low_width(shape.widths[stage]), high_width(shape.widths[stage])
            blended = changes(found, spaces, f"{path}/blended")
            of_low, *of_high = torch.split(blended, [low, *[high for _ in HIGHS]], dim=1)
            scores[f"{path}.low"] = mean_square(of_low + changes(found, spaces, f"{path}.low"))
            scores |= {f"{path}.high.{i}": mean_square(of_high[i]) for i in HIGHS}
            values = changes(found, spaces, f"{path}.attention/values")
            heads = values.reshape(len(values), -1, VALUE_DIM).sum(2)
            scores[f"{path}.attention/heads"] = mean_square(heads)
    return scores


def kept_of(
    source: FMViTShape, target: FMViTShape, blocks: Blocks, importance: Importance
) -> dict[str, Tensor]:
    """Which channels of every space of the source a network of the target shape keeps.

    For the blocks that it keeps. Raises SlimError for an importance of another network.
    """
    kept = {
        space: _chosen(importance.channels, space, size)
        for space, size in sizes_of(target, blocks).items()
    }
    for stage, row in enumerate(blocks):
        low, high = low_width(source.widths[stage]), high_width(source.widths[stage])
        for block in row:
            path = path_of(stage, block)
            if source.kinds[stage][block] == MIX:
                heads = kept.pop(f"{path}.attention/heads")
                kept[f"{path}.attention/keys"] = _members(heads, KEY_DIM)
                kept[f"{path}.attention/values"] = _members(heads, VALUE_DIM)
                highs = [kept[f"{path}.high.{i}"] + low + i * high for i in HIGHS]
                kept[f"{path}/blended"] = torch.cat([kept[f"{path}.low"], *highs])
    return kept


def silencers(shape: FMViTShape, stage: int, block: int) -> list[str]:
    """The parameters that make a block the identity when they are zero."""
    path = path_of(stage, block)
    mixer = f"{path}.blend" if shape.kinds[stage][block] == MIX else f"{path}.mixer.2"
    found = []
    for last in (mixer, f"{path}.mlp.fc2"):
        norms = [f"{last}.branches.0.bn", f"{last}.branches.1.bn"]
        if _has_skip(shape.widths[stage], last):
            norms.append(f"{last}.skip")
        found += [f"{norm}.{part}" for norm in norms for part in ("weight", "bias")]
    return found


def path_of(stage: int, block: int) -> str:
    """The name of a block."""
    return f"stages.{stage}.{block + 1}"


def stream(stage: int) -> str:
    """The name of a stage's residual stream."""
    return f"stage{stage}"


def _has_skip(width: int, path: str) -> bool:
    """Whether the last convolution of a branch keeps its number of channels."""
    if path.endswith(".blend"):
        return low_width(width) + len(HIGHS) * high_width(width) == width
    return path.endswith(".mixer.2")


def _chosen(channels: Mapping[str, Tensor], space: str, size: int) -> Tensor:
    """The strongest of a space: of its heads and the stem's channels any, else by quarters."""
    if space not in channels:
        raise SlimError(f"the importance is of another network: it has no scores of {space}")
    if space == STEM or space.endswith("/heads"):
        return strongest(channels[space], size)
    quarters = channels[space].chunk(QUARTERS)
    starts = range(0, len(channels[space]), len(quarters[0]))
    best = [strongest(quarter, size // QUARTERS) for quarter in quarters]
    return torch.cat([start + chosen for start, chosen in zip(starts, best, strict=True)])


def _members(heads: Tensor, width: int) -> Tensor:
    """Heads (M,) to their channels (M * width,)."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _every(shape: FMViTShape) -> Iterator[tuple[int, str, int]]:
    """Stage, path and kind of every block."""
    for stage, kinds in enumerate(shape.kinds):
        for block, kind in enumerate(kinds):
            yield stage, path_of(stage, block), kind


def _norm(path: str, space: str | None) -> Lies:
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {f"{path}.{tensor}": (space,) for tensor in tensors}


def _conv_bn(path: str, out: str | None, inp: str | None) -> Lies:
    return {f"{path}.conv.weight": (out, inp, None, None), **_norm(f"{path}.bn", out)}


def _depthwise(path: str, space: str) -> Lies:
    branches = _conv_bn(f"{path}.branches.0", space, None)
    return branches | _conv_bn(f"{path}.branches.1", space, None) | _norm(f"{path}.skip", space)

"""Which channels of an SHViT can only be cut together.

The residual stream of stage I lies in two spaces, since a stage's first channels are those that
attend: `stageI/attended` and `stageI/rest`, together `stageI`. Every FFN has a hidden space, every
merging one of the map and one of its gate, every attention one of its values; the stem three. They
bear the name of the module that writes them. Stages and blocks count from 0.
"""

# Shapes: see edgevit/models/shvit.py.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from converters.slim.families.base import Importance
from converters.slim.families.trained import strongest_of
from converters.slim.importance import Scores, changes, mean_square, of_space
from converters.slim.slicing import Spaces
from edgevit.models.shvit import (
    FFN_RATIO,
    MERGE_RATIO,
    QK_DIM,
    STAGES,
    SHViTShape,
    gate_width,
)

STEM = tuple(f"patch_embed.{index}" for index in (0, 2, 4, 6))
STEM_SHARES = (8, 4, 2)  # of the first stage's width

Lies = dict[str, tuple[str | None, ...]]


def spaces_of(shape: SHViTShape) -> Spaces:
    """For every tensor of a network of this shape, the space of each of its dims."""
    found: Lies = {}
    for path, before, after in zip(STEM, (None, *STEM), (*STEM[:-1], stream(0)), strict=False):
        found |= _conv_bn(path, after, before)
    for stage in range(STAGES):
        own = stream(stage)
        if stage:
            down, before = f"stages.{stage}.downsample", stream(stage - 1)
            found |= _conv_bn(f"{down}.0.m", before, None) | _ffn(f"{down}.1.m", before)
            found |= _merge(f"{down}.2", before, own)
            found |= _conv_bn(f"{down}.3.m", own, None) | _ffn(f"{down}.4.m", own)
        for block in _blocks(shape, stage):
            found |= _conv_bn(f"{block}.conv.m", own, None) | _ffn(f"{block}.ffn.m", own)
            if shape.attention_dims[stage]:
                found |= _attention(f"{block}.mixer.m", stage)
    for head in ("head", "head_dist")[: shape.heads]:
        last = stream(STAGES - 1)
        found |= _norm(f"{head}.bn", last) | {f"{head}.l.weight": (None, last)}
    return found


def sizes_of(shape: SHViTShape) -> dict[str, int]:
    """Every space and how many channels a network of this shape has there."""
    found = {STEM[i]: shape.widths[0] // share for i, share in enumerate(STEM_SHARES)}
    for stage, (width, attended) in enumerate(zip(shape.widths, shape.attention_dims, strict=True)):
        if attended:
            found[f"{stream(stage)}/attended"] = attended
        found[f"{stream(stage)}/rest"] = width - attended
        if stage:
            down, before = f"stages.{stage}.downsample", shape.widths[stage - 1]
            found[f"{down}.1.m.pw1"] = FFN_RATIO * before
            found[f"{down}.2.conv1"] = MERGE_RATIO * before
            found[f"{down}.2.se.fc1"] = gate_width(MERGE_RATIO * before)
            found[f"{down}.4.m.pw1"] = FFN_RATIO * width
        for block in _blocks(shape, stage):
            found[f"{block}.ffn.m.pw1"] = FFN_RATIO * width
            if attended:
                found[f"{block}.mixer.m/values"] = attended
    return found


def scores_of(shape: SHViTShape, found: Scores) -> dict[str, Tensor]:
    """A score for every channel of every space, (channels,), by the scores of the network."""
    spaces = spaces_of(shape)
    scores: dict[str, Tensor] = {}
    for stage, attended in enumerate(shape.attention_dims):
        own = stream(stage)
        total = changes(found, spaces, own)
        if attended:
            total[:, :attended] += changes(found, spaces, f"{own}/attended")
            for block in _blocks(shape, stage):
                mixed = changes(found, spaces, f"{block}.mixer.m.proj")
                total[:, attended:] += mixed[:, attended:]
                scores[f"{block}.mixer.m/values"] = mean_square(mixed[:, :attended])
            scores[f"{own}/attended"] = mean_square(total[:, :attended])
        scores[f"{own}/rest"] = mean_square(total[:, attended:])
    others = (space for space in sizes_of(shape) if space not in scores)
    return scores | {space: of_space(found, spaces, space) for space in others}


def kept_of(source: SHViTShape, target: SHViTShape, importance: Importance) -> dict[str, Tensor]:
    """Which channels of every space of the source a network of the target shape keeps."""
    chosen = strongest_of(importance, sizes_of(replace(target, depths=source.depths)))
    kept = dict(chosen)
    for stage, attended in enumerate(source.attention_dims):
        own = stream(stage)
        rest = attended + chosen[f"{own}/rest"]
        kept[own] = torch.cat([chosen[f"{own}/attended"], rest]) if attended else rest
        for block in _blocks(source, stage) if attended else []:
            values = chosen[f"{block}.mixer.m/values"]
            keys = torch.arange(2 * QK_DIM)
            kept[f"{block}.mixer.m.qkv"] = torch.cat([keys, len(keys) + values])
            kept[f"{block}.mixer.m.proj"] = torch.cat([values, rest])
    return kept


def silencers(shape: SHViTShape, stage: int, block: int) -> list[str]:
    """The parameters that make a block the identity when they are zero."""
    path = f"stages.{stage}.blocks.{block}"
    last = [f"{path}.conv.m.bn", f"{path}.ffn.m.pw2.bn"]
    if shape.attention_dims[stage]:
        last.append(f"{path}.mixer.m.proj.1.bn")
    return [f"{name}.{part}" for name in last for part in ("weight", "bias")]


def attended_counts(channels: Mapping[str, Tensor], stage: int) -> tuple[int, int]:
    """How many channels of a stage attend in the source, and how many it has in all."""
    attended = len(channels.get(f"{stream(stage)}/attended", ()))
    return attended, attended + len(channels.get(f"{stream(stage)}/rest", ()))


def stream(stage: int) -> str:
    """The name of a stage's residual stream."""
    return f"stage{stage}"


def _blocks(shape: SHViTShape, stage: int) -> list[str]:
    return [f"stages.{stage}.blocks.{block}" for block in range(shape.depths[stage])]


def _norm(path: str, space: str | None) -> Lies:
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {f"{path}.{tensor}": (space,) for tensor in tensors}


def _conv_bn(path: str, out: str | None, inp: str | None) -> Lies:
    return {f"{path}.c.weight": (out, inp, None, None), **_norm(f"{path}.bn", out)}


def _ffn(path: str, own: str) -> Lies:
    hidden = f"{path}.pw1"
    return _conv_bn(hidden, hidden, own) | _conv_bn(f"{path}.pw2", own, hidden)


def _attention(path: str, stage: int) -> Lies:
    attended = f"{stream(stage)}/attended"
    return {
        f"{path}.pre_norm.weight": (attended,),
        f"{path}.pre_norm.bias": (attended,),
        **_conv_bn(f"{path}.qkv", f"{path}.qkv", attended),
        **_conv_bn(f"{path}.proj.1", stream(stage), f"{path}.proj"),
    }


def _merge(path: str, before: str, after: str) -> Lies:
    hidden, gate = f"{path}.conv1", f"{path}.se.fc1"
    return {
        **_conv_bn(hidden, hidden, before),
        **_conv_bn(f"{path}.conv2", hidden, None),
        f"{path}.se.fc1.weight": (gate, hidden, None, None),
        f"{path}.se.fc1.bias": (gate,),
        f"{path}.se.fc2.weight": (hidden, gate, None, None),
        f"{path}.se.fc2.bias": (hidden,),
        **_conv_bn(f"{path}.conv3", after, hidden),
    }

"""Smaller EfficientFormers out of a trained one, or out of a trained supernet: names and spaces.

A stage's residual stream is one space, the stem's hidden map and every MLP's hidden layer are one
each. Heads are as they are: their number and size are the family's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Importance, Subnet
from converters.slim.slicing import strongest, take
from converters.slim.supernets.efficientformer import EfficientFormerSupernet
from edgevit.models.efficientformer import (
    LAYER_SCALE_INIT,
    MLP_RATIO,
    STAGES,
    AttentionBlock,
    EfficientFormer,
    EfficientFormerShape,
    PoolingBlock,
)

Block = PoolingBlock | AttentionBlock
Source = EfficientFormer | EfficientFormerSupernet
AllSpaces = dict[str, tuple[str | None, ...]]

STEM = "stem"
NORM = ("weight", "bias", "running_mean", "running_var")
AS_POOL = "as_pool"  # the name under which an attention block's stand-in is, beside the block's own
QUADRATURE = 32  # points


def blocks_of(source: nn.Module) -> list[list[dict[type[Block], str]]]:
    """Of every stage and block, the names of what the source has for it, by kind.

    A network has one of a block, a supernet several. Raises SlimError for another module.
    """
    if isinstance(source, EfficientFormerSupernet):
        return [
            [
                {PoolingBlock: f"stages.{i}.blocks.{j}.pool"}
                | ({AttentionBlock: f"stages.{i}.blocks.{j}.attention"} if block.attention else {})
                for j, block in enumerate(blocks)
            ]
            for i, blocks in enumerate(source.metas())
        ]
    if isinstance(source, EfficientFormer):
        return [
            [
                {type(block): f"stages.{i}.blocks.{k}"}
                for k, block in enumerate(source.get_submodule(f"stages.{i}.blocks").children())
                if isinstance(block, Block)
            ]
            for i in range(STAGES)
        ]
    raise SlimError(f"a {type(source).__name__} is no EfficientFormer, nor its supernet")


def stream(stage: int) -> str:
    """The space of a stage's residual stream."""
    return f"stage{stage + 1}"


def hidden(block: str) -> str:
    """The space of a block's hidden layer."""
    return f"{block}.mlp"


def spaces_of(source: nn.Module) -> AllSpaces:
    """Where the channels of every tensor lie, of a network or a supernet."""
    found: AllSpaces = {
        "stem.conv1.weight": (STEM, None, None, None),
        "stem.conv1.bias": (STEM,),
        "stem.conv2.weight": (stream(0), STEM, None, None),
        "stem.conv2.bias": (stream(0),),
    }
    found |= {f"stem.norm1.{name}": (STEM,) for name in NORM}
    found |= {f"stem.norm2.{name}": (stream(0),) for name in NORM}
    for stage in range(1, STAGES):
        down, out = f"stages.{stage}.downsample", stream(stage)
        found[f"{down}.conv.weight"] = (out, stream(stage - 1), None, None)
        found[f"{down}.conv.bias"] = (out,)
        found |= {f"{down}.norm.{name}": (out,) for name in NORM}
    for stage, blocks in enumerate(blocks_of(source)):
        for names in blocks:
            for kind, name in names.items():
                found |= _block_spaces(kind, name, stream(stage), hidden(name))
    found |= {f"norm.{name}": (stream(STAGES - 1),) for name in NORM[:2]}
    found |= {f"{head}.weight": (None, stream(STAGES - 1)) for head in ("head", "head_dist")}
    return found


def _block_spaces(kind: type[Block], name: str, out: str, inner: str) -> AllSpaces:
    found: AllSpaces = {f"{name}.ls1.gamma": (out,), f"{name}.ls2.gamma": (out,)}
    kernel: tuple[None, ...] = (None, None) if kind is PoolingBlock else ()
    found[f"{name}.mlp.fc1.weight"] = (inner, out, *kernel)
    found[f"{name}.mlp.fc1.bias"] = (inner,)
    found[f"{name}.mlp.fc2.weight"] = (out, inner, *kernel)
    found[f"{name}.mlp.fc2.bias"] = (out,)
    if kind is PoolingBlock:
        found |= {f"{name}.mlp.norm1.{each}": (inner,) for each in NORM}
        found |= {f"{name}.mlp.norm2.{each}": (out,) for each in NORM}
    else:
        found |= {
            f"{name}.{norm}.{each}": (out,) for norm in ("norm1", "norm2") for each in NORM[:2]
        }
        found[f"{name}.token_mixer.qkv.weight"] = (None, out)
        found[f"{name}.token_mixer.proj.weight"] = (out, None)
        found[f"{name}.token_mixer.proj.bias"] = (out,)
    return found


def cut(
    source: nn.Module, subnet: Subnet, importance: Importance, classes: int, side: int
) -> EfficientFormer:
    """The subnet's network with the source's weights, in eval mode. Raises SlimError."""
    shape = subnet.shape
    assert isinstance(shape, EfficientFormerShape)
    given = blocks_of(source)
    _check_blocks(subnet, shape, given)
    state, spaces = dict(source.state_dict()), spaces_of(source)
    target = EfficientFormer(shape, classes, side).eval()
    widths = {STEM: shape.widths[0] // 2} | {stream(i): w for i, w in enumerate(shape.widths)}
    names = {name: name for name in target.state_dict() if ".blocks." not in name}
    for stage, blocks in enumerate(blocks_of(target)):
        for (own,), index in zip(
            (each.items() for each in blocks), subnet.blocks[stage], strict=True
        ):
            kind, name = own
            theirs = given[stage][index].get(kind)
            if theirs is None:
                theirs = _stand_in(kind, given[stage][index], state, spaces)
            space = hidden(theirs.removesuffix(f".{AS_POOL}"))
            widths[space] = MLP_RATIO * shape.widths[stage]
            block = target.get_submodule(name)
            names |= {f"{name}.{each}": f"{theirs}.{each}" for each in block.state_dict()}
    take(state, target, names, spaces, _kept(state, spaces, widths, importance))
    return target


def _check_blocks(
    subnet: Subnet, shape: EfficientFormerShape, given: list[list[dict[type[Block], str]]]
) -> None:
    if tuple(map(len, subnet.blocks)) != shape.depths:
        raise SlimError(f"a subnet of depths {shape.depths} names the blocks {subnet.blocks}")
    for stage, (blocks, there) in enumerate(zip(subnet.blocks, given, strict=True)):
        if list(blocks) != sorted({*blocks} & {*range(len(there))}):
            raise SlimError(
                f"stage {stage + 1} of the source has {len(there)} blocks, from 0; the subnet "
                f"wants {blocks}"
            )


def _stand_in(
    kind: type[Block], names: Mapping[type[Block], str], state: dict[str, Tensor], spaces: AllSpaces
) -> str:
    """The name of a pooling block made from an attention block, which is put into the state."""
    if kind is AttentionBlock:
        raise SlimError(f"the source has no attention in {next(iter(names.values()))}")
    theirs = names[AttentionBlock]
    name = f"{theirs}.{AS_POOL}"
    made = pooling_from_attention(
        {
            key.removeprefix(f"{theirs}."): value
            for key, value in state.items()
            if key.startswith(f"{theirs}.")
        }
    )
    state |= {f"{name}.{key}": value for key, value in made.items()}
    out = spaces[f"{theirs}.ls2.gamma"][0]
    assert out is not None
    spaces |= _block_spaces(PoolingBlock, name, out, hidden(theirs))
    return name


def pooling_from_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a pooling block that starts with the MLP of an attention block.

    The MLP stays what it is on normalised input. Its LayerNorm goes into the first map, and both
    BatchNorms give out the mean and spread that a standard normal input leads to, so that they go
    on giving them after their statistics are settled on pictures. The pooling begins as in an
    untrained block, next to nothing.
    """
    first = state["mlp.fc1.weight"].double() * state["norm2.weight"].double()
    mean1 = state["mlp.fc1.bias"].double() + state["mlp.fc1.weight"].double() @ (
        state["norm2.bias"].double()
    )
    var1 = first.square().sum(1)
    second = state["mlp.fc2.weight"].double()
    mean, var = _gelu_moments(mean1, var1)
    mean2 = second @ mean + state["mlp.fc2.bias"].double()
    var2 = second.square() @ var
    made = {
        "ls1.gamma": torch.full_like(state["ls1.gamma"], LAYER_SCALE_INIT),
        "ls2.gamma": state["ls2.gamma"],
        "mlp.fc1.weight": first[..., None, None],
        "mlp.fc1.bias": mean1,
        "mlp.fc2.weight": second[..., None, None],
        "mlp.fc2.bias": state["mlp.fc2.bias"],
    }
    for norm, mean_C, var_C in (("norm1", mean1, var1), ("norm2", mean2, var2)):
        eps = nn.BatchNorm2d(1).eps
        made |= {
            f"mlp.{norm}.weight": (var_C + eps).sqrt(),
            f"mlp.{norm}.bias": mean_C,
            f"mlp.{norm}.running_mean": mean_C,
            f"mlp.{norm}.running_var": var_C,
            f"mlp.{norm}.num_batches_tracked": torch.tensor(0),
        }
    return {
        name: value.to(state["ls1.gamma"].dtype) if value.is_floating_point() else value
        for name, value in made.items()
    }


@lru_cache(maxsize=1)
def _hermite() -> tuple[Tensor, Tensor]:
    """Points and weights of the mean over a standard normal."""
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE)
    return torch.from_numpy(points), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def _gelu_moments(mean_C: Tensor, var_C: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of gelu(x), (channels,), for normal x with these."""
    points, weights = _hermite()
    values = F.gelu(mean_C[:, None] + var_C.sqrt()[:, None] * points)
    mean = values @ weights
    return mean, (values.square() @ weights - mean.square()).clamp(min=0)


def _kept(
    state: Mapping[str, Tensor], spaces: AllSpaces, widths: Mapping[str, int], found: Importance
) -> dict[str, Tensor]:
    """The strongest channels of every space that gets narrower."""
    sizes = {
        space: state[name].shape[dim]
        for name, lies in spaces.items()
        for dim, space in enumerate(lies)
        if space is not None
    }
    kept = {}
    for space, width in widths.items():
        if width == sizes[space]:
            continue
        if space not in found.channels:
            raise SlimError(f"the importance says nothing of the channels of {space}")
        kept[space] = strongest(found.channels[space], width)
    return kept

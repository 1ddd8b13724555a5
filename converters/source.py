"""From a model reference to a torch module in evaluation, with what is known about its input.

The grammar: a zoo name (`shvit_s1`), `timm:NAME`, `package.module:factory`, a torch.export file
(`path.pt2`), a network that slimming made (`OUT/network.yaml`), or a module itself. Weights are a
file, or `hf:ORG/NAME` of the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from converters.errors import ConvertError
from converters.refs import factory, hub, network_file, program, timm_zoo, zoo
from converters.refs.base import Source
from converters.refs.grammar import RANDOM, Kind, is_hub_ref, kind_of
from converters.settle import settle as settle_random

__all__ = ["Source", "load_source", "state_digest"]


def load_source(
    model: str | nn.Module | Source,
    *,
    weights: Path | str | None = None,
    size: int | None = None,
    classes: int | None = None,
    input_dtype: str = "float32",
    settle: bool = True,
) -> Source:
    """Build the module, load its weights, set it to evaluation.

    A Source is taken as it is, with what it says about its module.
    size is the input's height and width in pixels, classes the number of logits: with weights of
    another class count the head, and nothing else, stays random (seeded). Without weights a zoo,
    timm or slimmed model is random, seeded, with its BatchNorm statistics settled on pictures: fit
    for latency, not for accuracy, and the manifest says so. settle=False leaves a random network as
    its family initialises it, for training. Raises ConvertError, ModelError.
    """
    if size is not None and size < 1:
        raise ConvertError(f"--size must be a positive number of pixels, got {size}")
    if input_dtype not in ("float32", "uint8"):
        raise ConvertError(f"--input must be float32 or uint8, got '{input_dtype}'")
    source = _built(model, weights, size, classes)
    if weights is not None:
        source = _weighted(source, weights, new_head=classes is not None)
    elif settle and source.weights == RANDOM:
        settle_random(source)
    if classes is not None and source.num_classes != classes:
        raise ConvertError(
            f"'{source.ref}' has {source.num_classes} classes and --classes says {classes}; "
            "a module of your own sets its class count itself"
        )
    return replace(
        source,
        module=source.module.eval(),
        preprocessing=source.preprocessing.model_copy(
            update={
                "input_dtype": input_dtype,
                "input_range": (0.0, 255.0) if input_dtype == "uint8" else (0.0, 1.0),
            }
        ),
        weights_sha256=state_digest(source.module),
    )


def _built(
    model: str | nn.Module | Source,
    weights: Path | str | None,
    size: int | None,
    classes: int | None,
) -> Source:
    if isinstance(model, Source):
        return model
    if isinstance(model, nn.Module):
        return factory.from_module(model, type(model).__name__, size)
    kind = kind_of(model)
    if kind is Kind.PROGRAM:
        return program.from_program(model, size, classes, weights)
    if kind is Kind.FACTORY:
        return factory.from_factory(model, size)
    build = {
        Kind.NETWORK: network_file.from_network,
        Kind.TIMM: timm_zoo.from_timm,
        Kind.ZOO: zoo.from_zoo,
    }[kind]
    return build(model, size, classes)


def _weighted(source: Source, weights: Path | str, *, new_head: bool) -> Source:
    """The source with a checkpoint's weights, and what was changed to make them fit."""
    from edgevit.models import ModelError, load_weights

    if is_hub_ref(weights):
        checkpoint = hub.fetch(str(weights))
    else:
        checkpoint = hub.Checkpoint(Path(weights), Path(weights).name)
    try:
        loaded = load_weights(source.module, checkpoint.path, source.family, new_head=new_head)
    except ModelError as error:
        if not checkpoint.config:
            raise
        raise ConvertError(f"{error}\n  {checkpoint.config}") from error
    return replace(
        source,
        weights=checkpoint.name,
        trained=not loaded.new_head,
        notes=(*source.notes, *loaded.notes),
    )


def state_digest(module: nn.Module) -> str:
    """sha256 over names, shapes and bytes of the state dict, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

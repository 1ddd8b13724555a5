"""What is slimmed: a model reference, its family, and whether it is trained or to be trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from converters.chatter import chatter_to
from converters.refs.base import Source
from converters.slim.errors import SlimError
from converters.slim.families.base import Family
from converters.slim.families.registry import family_of
from converters.slim.options import SlimOptions
from converters.slim.source import About
from converters.source import load_source, state_digest
from edgevit.models.shapes import Shape, shape_as_json, shape_from_json
from edgevit.training import Preprocess

FLATTERY = (
    "the pictures that the search scored on may be among those that the network was trained on, so "
    "its scores on them may flatter it; the test pictures are not"
)


@dataclass(frozen=True)
class Origin:
    """about is the module that subnets inherit from, shape that of its largest subnet.

    source is the network of the reference. trained is that module with its weights, None where it
    is to be trained; weights_sha256 is over its tensors, or over the source's.
    """

    source: Source
    family: Family
    shape: Shape
    about: About
    trained: nn.Module | None
    weights: str
    weights_sha256: str
    notes: tuple[str, ...]

    @property
    def given(self) -> Shape:
        """The shape of the network of the reference, which a supernet may go beyond."""
        return shape_from_json(self.about.family, self.about.shape)

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the input, as edgevit.training takes it."""
        pre = self.source.preprocessing
        return Preprocess(
            pre.height, pre.width, tuple(pre.mean), tuple(pre.std), pre.crop_pct, pre.interpolation
        )


def origin_of(model: str, options: SlimOptions, classes: int) -> Origin:
    """Load the model. Raises SlimError for one that cannot be slimmed, or not in this way.

    Also ConvertError and ModelError, from loading it.
    """
    source = _load(model, None, options, classes)
    family = family_of(source.family)
    shape = _shape_of(source)
    pre = source.preprocessing
    if pre.height != pre.width:
        raise SlimError(f"slimming takes square pictures, got {pre.height} x {pre.width} pixels")
    told: dict[str, Any] = {
        "family": family.name,
        "shape": json.loads(json.dumps(shape_as_json(shape))),
        "classes": classes, "side": pre.height, "mean": list(pre.mean), "std": list(pre.std),
    }  # fmt: skip
    elastic = About(supernet=True, **told)
    supernet = elastic.build()
    has_supernet = type(supernet) is not type(source.module)
    if has_supernet and options.supernet:
        inner: Shape = getattr(supernet, "shape", shape)  # it may hold more than it was made for
        if options.weights is None:
            return Origin(
                source, family, inner, elastic, None, source.weights, source.weights_sha256,
                source.notes,
            )  # fmt: skip
        _fill(supernet, Path(options.weights))
        return Origin(
            source, family, inner, elastic, supernet, Path(options.weights).name,
            state_digest(supernet), source.notes,
        )  # fmt: skip
    about = About(supernet=False, **told)
    if options.weights is None:
        note = (
            f"the family {family.name} has no supernet: the whole network was trained, and slimmed "
            "by Taylor importance"
        )
        notes = (*source.notes, note)
        return Origin(
            source, family, shape, about, None, source.weights, source.weights_sha256, notes
        )
    source = _load(model, options.weights, options, classes)
    if not source.trained:
        raise SlimError(
            f"'{source.ref}' has a random head ({'; '.join(source.notes) or source.weights}): "
            "train it on this data first (edgevit train), and give that checkpoint"
        )
    notes = (*source.notes, FLATTERY)
    return Origin(
        source, family, shape, about, source.module, source.weights, source.weights_sha256, notes
    )


def _load(model: str, weights: str | None, options: SlimOptions, classes: int) -> Source:
    with chatter_to(None):  # the model's own code may print
        return load_source(model, weights=weights, size=options.size, classes=classes, settle=False)


def _fill(supernet: nn.Module, path: Path) -> None:
    """Load a supernet's weights, strictly. Raises SlimError for a file of anything else."""
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors' own error type, OSError
        raise SlimError(f"{path} cannot be read as .safetensors ({error})") from error
    own = {name: value.shape for name, value in supernet.state_dict().items()}
    if own != {name: value.shape for name, value in tensors.items()}:
        raise SlimError(
            f"{path} has not the weights of this model's supernet, as an earlier slimming of it "
            "leaves them (supernet.safetensors). To slim a trained network give --no-supernet"
        )
    supernet.load_state_dict(tensors)


def _shape_of(source: Source) -> Shape:
    """The shape that the module carries, if it builds the module again."""
    shape = getattr(source.module, "shape", None)
    try:
        again = shape_from_json(str(source.family), shape_as_json(shape))  # type: ignore[arg-type]
    except TypeError:
        again = None
    if shape is None or again != shape:
        raise SlimError(f"'{source.ref}' does not say how it is built, so it cannot be slimmed")
    found: Shape = shape
    own = found.build(source.num_classes, source.preprocessing.height).state_dict()
    if {n: v.shape for n, v in own.items()} != {
        n: v.shape for n, v in source.module.state_dict().items()
    }:
        raise SlimError(
            f"'{source.ref}' is built otherwise than its shape says, so it cannot be slimmed"
        )
    return found

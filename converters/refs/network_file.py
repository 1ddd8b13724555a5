"""`OUT/network.yaml`: a network that slimming made, as its shape; the weights lie beside it.

The file holds numbers only: what it names is built from the classes of the zoo, and reading it runs
no code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, field_validator

from converters.bundle_writer import cannot_write
from converters.errors import ConvertError
from converters.refs.base import Source, seeded
from converters.refs.grammar import RANDOM
from runtime.bundle import first_problem
from runtime.errors import RuntimeFault
from runtime.manifest import Preprocessing, Record
from runtime.yaml_file import read_yaml

if TYPE_CHECKING:
    from edgevit.models.shapes import Shape

SCHEMA = 1
NAME = "network.yaml"
# Far above any network that runs on an edge: beyond it a slip in a number, or malice.
MOST_VALUES = 1_000_000_000
MOST_IN_SHAPE = 10_000


class Pictures(Record):
    """How pictures are made ready: mean and std apply to RGB in [0, 1]."""

    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[float] = Field(min_length=3, max_length=3)
    crop_pct: float = Field(gt=0.0, le=1.0)
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

    @field_validator("std")
    @classmethod
    def _above_zero(cls, std: list[float]) -> list[float]:
        if min(std) <= 0:
            raise ValueError("must be above 0")
        return std


class NetworkFile(Record):
    """network.yaml. input_size in pixels a side; made_from is for the reader."""

    schema_version: Literal[1]
    family: str
    shape: dict[str, Any]
    input_size: int = Field(ge=1, strict=True)
    classes: int = Field(ge=1, strict=True)
    preprocessing: Pictures
    made_from: str

    @field_validator("shape", mode="before")
    @classmethod
    def _small(cls, shape: Any) -> Any:
        """Few values also where YAML's references make many out of a short file."""
        waiting, seen = [shape], 0
        while waiting:
            value = waiting.pop()
            seen += 1
            if seen > MOST_IN_SHAPE:
                raise ValueError(f"holds more than {MOST_IN_SHAPE} values")
            if isinstance(value, dict | list):
                waiting += value.values() if isinstance(value, dict) else value
        return shape


def write_network(
    path: Path,
    shape: Shape,
    *,
    input_size: int,
    classes: int,
    preprocessing: Preprocessing,
    made_from: str,
) -> None:
    """Write the file, whole or not at all.

    Of preprocessing, mean, std, crop and interpolation are kept: the side is input_size, in pixels.
    Raises ConvertError where it cannot be written.
    """
    from edgevit.models.shapes import family_of_shape, shape_as_json

    network = NetworkFile(
        schema_version=SCHEMA,
        family=family_of_shape(shape),
        shape=_as_lists(shape_as_json(shape)),
        input_size=input_size,
        classes=classes,
        preprocessing=Pictures(
            mean=preprocessing.mean,
            std=preprocessing.std,
            crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
        ),
        made_from=made_from,
    )
    # A list without lists inside goes on one line.
    text = yaml.safe_dump(network.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise cannot_write(str(path), error.errno) from error
    finally:
        with suppress(OSError):
            Path(name).unlink()


def read_network(path: Path) -> NetworkFile:
    """The file's content. Raises ConvertError for one that is gone, damaged or of another kind."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConvertError(f"{path} {what}: expected a {NAME} that `edgevit slim` wrote")
    try:
        data = read_yaml(path)
    except RuntimeFault as error:
        raise ConvertError(f"{error}; expected a {NAME} that `edgevit slim` wrote") from error
    if not isinstance(data, dict) or "schema_version" not in data or "family" not in data:
        raise ConvertError(f"{path} describes no network: expected what `edgevit slim` writes")
    if data["schema_version"] != SCHEMA:
        raise ConvertError(
            f"{path} has schema version {data['schema_version']}, this edgevit reads {SCHEMA}: "
            "use the edgevit that wrote it, or slim again"
        )
    try:
        return NetworkFile.model_validate(data)
    except ValidationError as error:
        raise ConvertError(f"{path} is damaged: {first_problem(error)}") from error


def from_network(ref: str, size: int | None, classes: int | None) -> Source:
    """Build it with random weights; size (pixels) and classes take the place of the file's.

    Raises ConvertError, for a shape too that no network can be built of.
    """
    from edgevit.models import ModelError
    from edgevit.models.shapes import shape_from_json

    path = Path(ref)
    told = read_network(path)
    side = size or told.input_size
    count = told.classes if classes is None else classes
    try:
        shape = shape_from_json(told.family, told.shape)
        _check_size(shape, count, side)
        with seeded():
            module = shape.build(count, side)
    except ModelError as error:
        raise ConvertError(f"{path}: {error}") from error
    preprocessing = Preprocessing(
        mean=told.preprocessing.mean,
        std=told.preprocessing.std,
        height=side,
        width=side,
        crop_pct=told.preprocessing.crop_pct,
        interpolation=told.preprocessing.interpolation,
    )
    return Source(ref, module, preprocessing, count, told.family, RANDOM, "", False)


def _check_size(shape: Shape, classes: int, side: int) -> None:
    """Raise ModelError for what would fill the memory, before it does."""
    from edgevit.models import ModelError

    with torch.device("meta"):
        module = shape.build(classes, side)
    values = sum(value.numel() for value in _tensors(module))
    if values > MOST_VALUES:
        raise ModelError(
            f"the shape makes a network of {values / 1e9:.1f} G values at {side} pixels, expected "
            f"at most {MOST_VALUES / 1e9:.0f} G"
        )


def _tensors(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _as_lists(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML's safe types."""
    if isinstance(value, dict):
        return {name: _as_lists(inner) for name, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value

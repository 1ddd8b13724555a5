"""How the networks of a family are built, as values: what slimming changes and a file can hold.

A family's shape is a frozen dataclass of ints and tuples of ints, registered under the family's
name; its fields in JSON build it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, Protocol, TypeVar, cast

from torch import nn

from edgevit.models.registry import ModelError


class Shape(Protocol):
    """One network of a family, without its weights."""

    def build(self, num_classes: int, input_size: int) -> nn.Module:
        """The network in eval mode, random weights, for pictures of input_size pixels a side."""
        ...


Kind = TypeVar("Kind")
_SHAPES: dict[str, type] = {}


def register_shape(family: str) -> Callable[[type[Kind]], type[Kind]]:
    """Decorator: the dataclass is the shape of the networks of `family`."""

    def register(kind: type[Kind]) -> type[Kind]:
        if family in _SHAPES:
            raise ModelError(f"family {family!r} has two shapes")
        _SHAPES[family] = kind
        return kind

    return register


def family_of_shape(shape: Shape) -> str:
    """The name under which its class is registered."""
    return next(name for name, kind in _SHAPES.items() if type(shape) is kind)


def shape_as_json(shape: Shape) -> dict[str, Any]:
    """Its fields, as JSON has them."""
    return asdict(cast(Any, shape))


def shape_from_json(family: str, values: Mapping[str, Any]) -> Shape:
    """The shape with these fields. Raises ModelError for unknown, absent or impossible ones."""
    if family not in _SHAPES:
        raise ModelError(f"no shapes of family {family!r}; expected one of: {', '.join(_SHAPES)}")
    kind = _SHAPES[family]
    known = {field.name for field in fields(kind)}
    if set(values) != known:
        odd = sorted(set(values) ^ known)
        raise ModelError(f"a shape of {family} has the fields {sorted(known)}; see: {odd}")
    try:
        return cast(Shape, kind(**{name: _frozen(value) for name, value in values.items()}))
    except (TypeError, ValueError) as error:
        raise ModelError(f"no shape of {family}: {error}") from error


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value

"""Family names to families; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from converters.slim.errors import SlimError
from converters.slim.families.base import Family

FAMILIES = {
    "efficientformer": "converters.slim.families.efficientformer:EfficientFormerFamily",
    "efficientformerv2": "converters.slim.families.efficientformerv2:EfficientFormerV2Family",
    "fmvit": "converters.slim.families.fmvit:FMViTFamily",
    "shvit": "converters.slim.families.shvit:SHViTFamily",
}


def family_of(name: str | None) -> Family:
    """The family of that name. Raises SlimError where it cannot be slimmed."""
    if name not in FAMILIES:
        raise SlimError(
            f"models of the family '{name}' cannot be slimmed; expected one of: "
            f"{', '.join(FAMILIES)}"
        )
    module, _, found = FAMILIES[name].partition(":")
    family: Family = getattr(import_module(module), found)()
    return family

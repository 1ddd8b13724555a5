"""What references to models and weights look like. Imports no torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

TIMM = "timm:"
HUB = "hf:"
PROGRAM = ".pt2"
NETWORK = (".yaml", ".yml")

SEED = 0
RANDOM = f"random, seed {SEED}"
GIVEN = "given"


class Kind(StrEnum):
    """What a model reference names."""

    ZOO = "zoo"
    TIMM = "timm"
    FACTORY = "factory"
    PROGRAM = "program"
    NETWORK = "network"

    @property
    def takes_classes(self) -> bool:
        """Whether a head is made for the asking; the others bring their class count along."""
        return self in (Kind.ZOO, Kind.TIMM, Kind.NETWORK)


def kind_of(ref: str) -> Kind:
    """That of `shvit_s1`, `timm:NAME`, `package.module:factory`, `path.pt2`, `OUT/network.yaml`."""
    if ref.lower().endswith(PROGRAM):
        return Kind.PROGRAM
    if ref.lower().endswith(NETWORK):
        return Kind.NETWORK
    if ref.startswith(TIMM):
        return Kind.TIMM
    return Kind.FACTORY if ":" in ref else Kind.ZOO


def is_hub_ref(weights: Path | str) -> bool:
    """Whether `--weights` names a repository of the Hugging Face hub."""
    return str(weights).startswith(HUB)


def needs_weights(ref: str, weights: str) -> bool:
    """Whether a model with these weights, as a manifest names them, takes a checkpoint to build.

    A program has its weights inside, a factory gives its module with them, and random ones come
    from the seed.
    """
    return kind_of(ref) is not Kind.PROGRAM and weights not in (RANDOM, GIVEN)

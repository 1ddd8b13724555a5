"""The zoo: which models there are, what is published about them, and how one is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


class ModelError(Exception):
    """A model, its arguments or its weights are not what was asked for; the message says why."""

    exit_code: ClassVar[int] = 2


class Latency(NamedTuple):
    """One published latency: what ran on what, milliseconds per image, and who says so."""

    what: str
    ms: float
    source: str


@dataclass(frozen=True)
class ModelConfig:
    """What is known about one model of the zoo.

    `input_size` is the side of the square input in pixels; `mean` and `std` apply to RGB in [0, 1];
    `crop_pct` and `interpolation` are those of timm's evaluation. `params_m` (millions) and
    `macs_g` (1e9 multiply-adds of convolutions and matrix products, batch 1, at `input_size`) count
    the training form with 1000 classes, every head included. `top1` is ImageNet-1k percent.

    `takes_size` says that the family's weights depend on the input's size (positional tables), so
    that its factory takes `input_size`; without it the model runs at any size as it is. The side
    must be a multiple of `size_multiple` pixels.
    """

    name: str
    family: str
    input_size: int
    crop_pct: float
    params_m: float
    macs_g: float
    top1: float | None = None
    top1_source: str | None = None
    latencies: tuple[Latency, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    takes_size: bool = False
    size_multiple: int = 1


_MODELS: dict[str, tuple[ModelConfig, Callable[..., nn.Module]]] = {}


def register_model(config: ModelConfig) -> Callable[[Factory], Factory]:
    """Decorator: the factory `(num_classes=1000, **kwargs) -> nn.Module` makes model `config.name`.

    Raises ModelError where the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if config.name in _MODELS:
            raise ModelError(f"model {config.name!r} is registered twice")
        _MODELS[config.name] = (config, factory)
        return factory

    return register


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern (`shvit_*`), numbers in their natural order."""
    return sorted((name for name in _MODELS if fnmatchcase(name, pattern)), key=_natural)


def model_config(name: str) -> ModelConfig:
    """The facts about one model; ModelError names the nearest models where there is none."""
    return _find(name)[0]


def create_model(name: str, num_classes: int = 1000, **kwargs: Any) -> nn.Module:
    """A model of the zoo in eval mode, with random weights from torch's default generator.

    Takes float images (B, 3, H, W), normalised as `model_config(name)` says; gives logits
    (B, num_classes). `kwargs` go to the family's class, among them `input_size`, the side in
    pixels, where `model_config(name).takes_size`. Raises ModelError for an unknown name, fewer than
    one class, or a size that the family does not take.
    """
    config, factory = _find(name)
    if num_classes < 1:
        raise ModelError(f"expected at least 1 class, got {num_classes}")
    if "input_size" in kwargs and not config.takes_size:
        raise ModelError(f"{name} takes no input_size: its weights fit images of any size")
    return factory(num_classes=num_classes, **kwargs).eval()


def check_side(what: str, side: int, multiple: int) -> None:
    """Raise ModelError unless a square input's side, in pixels, is a multiple of `multiple`."""
    if side < multiple or side % multiple:
        below = max(side // multiple * multiple, 0)
        near = [str(n) for n in (below, below + multiple) if n > 0]
        raise ModelError(
            f"{what} takes images whose side is a multiple of {multiple} pixels, got {side}; "
            f"the nearest: {' or '.join(near)}"
        )


def _find(name: str) -> tuple[ModelConfig, Callable[..., nn.Module]]:
    if name in _MODELS:
        return _MODELS[name]
    near = nearest_names(name, list_models())
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise ModelError(f"unknown model {name!r}; {hint}`edgevit models` lists all")


def nearest_names(name: str, known: list[str], count: int = 3) -> list[str]:
    """The `count` most similar of the known names, best first; ties keep the given order."""
    score = {other: SequenceMatcher(None, name.lower(), other.lower()).ratio() for other in known}
    near = [other for other in known if score[other] >= 0.6]
    return sorted(near, key=lambda other: -score[other])[:count]


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]

"""What every kind of model reference gives, and what their loaders share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from converters.diagnosis import place_of
from converters.errors import ConvertError
from converters.refs.grammar import SEED
from runtime.manifest import Preprocessing


@dataclass(frozen=True)
class Source:
    """A torch module ready to export, and its provenance.

    weights is 'random, seed 0', 'given' (a module that came as it is), the file's name, or
    hf:REPO@COMMIT/FILE. notes say in plain words what was changed on the way.
    """

    ref: str
    module: nn.Module
    preprocessing: Preprocessing
    num_classes: int
    family: str | None
    weights: str
    weights_sha256: str
    trained: bool
    notes: tuple[str, ...] = ()


@contextmanager
def seeded() -> Iterator[None]:
    """Random weights from SEED; the caller's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def from_cfg(cfg: dict[str, Any], size: int | None) -> Preprocessing:
    """The preprocessing that a `pretrained_cfg` (timm's convention) asks for.

    size (pixels) takes the place of its own. Raises ConvertError where it is not of RGB pictures.
    """
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    if channels != 3:
        raise ConvertError(f"the model takes {channels} channels, expected 3 (RGB)")
    return Preprocessing(
        mean=[float(m) for m in cfg["mean"]],
        std=[float(s) for s in cfg["std"]],
        height=size or height,
        width=size or width,
        crop_pct=float(cfg.get("crop_pct") or 1.0),
        interpolation=str(cfg.get("interpolation") or "bicubic"),
    )


def run(ref: str, module: nn.Module, x_BCHW: Tensor) -> Any:
    """The module's output; what it raises as a ConvertError that says what went in, and where."""
    try:
        with torch.no_grad():
            return module(x_BCHW)
    except Exception as error:
        if hasattr(error, "exit_code"):  # an error of ours from inside the model
            raise
        place = place_of(error, module)
        raise ConvertError(
            f"'{ref}' does not take pictures of shape {tuple(x_BCHW.shape)}: {told(error)}"
            + (f" (in {place})" if place else "")
            + ". --size sets their height and width"
        ) from error


def class_count(ref: str, module: nn.Module, height: int, width: int) -> int:
    """The number of logits that one picture (pixels) gives. Raises ConvertError for other outputs.

    Known containers of several tensors are told apart, so that the message can name the way out.
    """
    out = run(ref, module, torch.zeros(1, 3, height, width))
    if isinstance(out, Tensor) and out.dim() == 2 and len(out) == 1:
        return int(out.shape[1])
    got = str(tuple(out.shape)) if isinstance(out, Tensor) else type(out).__name__
    inside = _tensors_of(out)
    raise ConvertError(
        f"'{ref}' must give logits of shape (1, classes), got {got}"
        + (
            f" with {', '.join(inside)}: return one tensor from forward(), or wrap the model in a "
            "module that does"
            if inside
            else ""
        )
    )


def _tensors_of(out: Any) -> list[str]:
    """Name and shape of the tensors in a dict, a sequence or an object's attributes."""
    if isinstance(out, Tensor):
        return []
    if isinstance(out, dict):
        items = [(str(key), value) for key, value in out.items()]
    elif isinstance(out, list | tuple):
        names = getattr(out, "_fields", range(len(out)))
        items = [(str(name), value) for name, value in zip(names, out, strict=False)]
    else:
        items = list(getattr(out, "__dict__", {}).items())
    return [f"{name} {tuple(value.shape)}" for name, value in items if isinstance(value, Tensor)]


def told(error: Exception) -> str:
    """An exception in one line: its type and the beginning of its text."""
    return f"{type(error).__name__}: {str(error).strip()[:500]}"

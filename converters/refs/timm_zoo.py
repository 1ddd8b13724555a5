"""`timm:NAME`: a model of timm, its input as its own configuration has it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import nn

from converters.errors import ConvertError
from converters.refs.base import Source, from_cfg, seeded, told
from converters.refs.grammar import RANDOM, TIMM
from runtime.errors import missing_extra


def from_timm(ref: str, size: int | None, classes: int | None) -> Source:
    """Build it with random weights; size is the side of its input in pixels.

    A model whose input size is fixed when it is built (ViT and its like) is built for that side.
    Raises MissingExtra, ConvertError.
    """
    try:
        timm = import_timm()
    except ImportError as error:
        raise missing_extra(f"'{ref}'", "timm", "timm") from error
    if classes is not None and classes < 1:
        raise ConvertError(f"--classes must be at least 1, got {classes}")
    name = ref.removeprefix(TIMM)
    arguments: dict[str, int] = {} if classes is None else {"num_classes": classes}
    notes: tuple[str, ...] = ()
    try:
        cfg = timm.models.get_pretrained_cfg(name)
        if size is not None and cfg is not None and cfg.fixed_input_size:
            arguments["img_size"] = size
            own = "x".join(map(str, cfg.input_size[1:]))
            if own != f"{size}x{size}":
                notes = (f"timm built it for {size}x{size} pictures, its own size is {own}",)
        with seeded():
            module: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # an unknown name is a RuntimeError; the rest is each model's own
        raise ConvertError(_cannot_build(timm, name, arguments, error)) from error
    preprocessing = from_cfg(_cfg(module), size)
    count = int(module.num_classes)  # type: ignore[arg-type]
    if count < 1:
        raise ConvertError(f"'{ref}' has no classes, it gives features: --classes N sets a head")
    return Source(ref, module, preprocessing, count, None, RANDOM, "", False, notes)


def _cfg(module: nn.Module) -> dict[str, Any]:
    cfg: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return cfg


def _cannot_build(timm: Any, name: str, arguments: dict[str, int], error: Exception) -> str:
    from edgevit.models.registry import nearest_names

    if timm.is_model(name.split(".", maxsplit=1)[0]):
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        return f"timm cannot build '{name}'{f' with {given}' if given else ''}: {told(error)}"
    near = nearest_names(name, timm.list_models())
    hint = f"; did you mean {', '.join(TIMM + n for n in near)}?" if near else ""
    return f"timm cannot build '{name}': {error}{hint}"


def import_timm() -> Any:
    """timm, also where torchvision's compiled ops do not load beside a CPU build of torch."""
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for op in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call]
            f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _KEPT_ALIVE.append(library)
    return importlib.import_module("timm")


_KEPT_ALIVE: list[Any] = []

"""Reads checkpoint files into zoo models: official and timm layouts, always safe, always strict."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.models.registry import (
    ModelError,
    create_model,
    list_models,
    model_config,
    nearest_names,
)

Weights = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Official layouts, family by family: (pattern, replacement) from the official names to ours, which
# are timm's. All rules of a family are applied to every name, in this order.
OFFICIAL: dict[str, tuple[Rule, ...]] = {
    "efficientformer": (
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.1\.", "stem.norm1."),
        (r"^patch_embed\.3\.", "stem.conv2."),
        (r"^patch_embed\.4\.", "stem.norm2."),
        # Even members are stages, odd ones the downsampling before the next. The flattening is a
        # numbered member of stage 4 on both sides, so block numbers stay.
        (r"^network\.([0246])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
        (r"^network\.([135])\.proj\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample.conv."),
        (r"^network\.([135])\.norm\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample.norm."),
        (r"\.layer_scale_([12])$", r".ls\1.gamma"),
        (r"^dist_head\.", "head_dist."),
    ),
    "shvit": (
        (r"^blocks1\.", "stages.0.blocks."),
        # The first three members of blocks2 and blocks3 are the downsampling: (dw, ffn), merge,
        # (dw, ffn). Their blocks start at 3.
        (r"^blocks([23])\.0\.([01])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
        (r"^blocks([23])\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.2."),
        (
            r"^blocks([23])\.2\.([01])\.",
            lambda m: f"stages.{int(m[1]) - 1}.downsample.{int(m[2]) + 3}.",
        ),
        (
            r"^blocks([23])\.(\d+)\.",
            lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}.",
        ),
    ),
}

SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPERS = ("model", "state_dict", "module", "model_ema")
# An index table that some files hold and some do not: the model has its own.
OPTIONAL = re.compile(r"(^|\.)attention_bias_idxs$")
HEAD = re.compile(r"^(head|head_dist)\.(l\.)?(weight|bias)$")
LISTED = 8
LOOKS_LIKE = 0.9


def load_weights(model: nn.Module, path: str | os.PathLike[str], family: str | None = None) -> None:
    """Load a `.pth`, `.pt` or `.safetensors` file into the model, all of it or nothing.

    The file may hold a training checkpoint around its state dict (`model`, `state_dict`, `module`,
    `model_ema`), and names in timm's layout or the official one. `family` limits the official
    layouts that are tried. Code in a file is never run. Raises ModelError for a file that cannot be
    read, or that has missing, unexpected or mis-shaped tensors, which it lists.
    """
    path = Path(path)
    _check_family(family)
    weights = _state_dict(_read(path), path)
    own = model.state_dict()
    layouts = _layouts(weights, family)
    fitted = min(layouts.values(), key=lambda renamed: _compare(own, renamed).count)
    differences = _compare(own, fitted)
    if differences.count:
        raise ModelError(_describe(path, own, fitted, weights, differences))
    model.load_state_dict({**own, **{name: fitted[name] for name in own if name in fitted}})


def _check_family(family: str | None) -> None:
    known = list(dict.fromkeys(model_config(name).family for name in list_models()))
    if family is not None and family not in known:
        near = nearest_names(family, known) or known
        raise ModelError(f"unknown model family {family!r}; expected {' or '.join(near)}")


def _read(path: Path) -> object:
    """What the file holds, through a reader that runs no code; ModelError says what is wrong."""
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path}: expected a checkpoint that ends in {', '.join(SUFFIXES)}")
    try:
        if not path.exists():
            raise ModelError(f"{path} does not exist: give the path of a checkpoint file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelError(f"{path} is empty: download or save it again")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _unpickle(path)


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"{path}: reading .safetensors needs a package that is not installed: "
            "pip install 'edgevit[convert]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise _damaged(path, "safetensors", error) from error


def _unpickle(path: Path) -> object:
    try:
        # Training scripts of this field store their argparse options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes raise nearly anything: KeyError, OSError, EOFError
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise ModelError(
                f"{path} is refused: the file wants to run code ({code[1]}), and only tensors and "
                "plain values are read. If you trust it, load it yourself and save its weights "
                "alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise _damaged(path, "torch.save", error) from error


def _damaged(path: Path, kind: str, error: Exception) -> ModelError:
    reason = type(error).__name__
    # An UnpicklingError's text is torch's advice to read the file unsafely: not passed on.
    if str(error) and not isinstance(error, pickle.UnpicklingError):
        first_sentence = re.split(r"[.;]\s", str(error), maxsplit=1)[0]
        reason += f": {first_sentence.strip()[:120]}"
    return ModelError(
        f"{path} is no readable {kind} file ({reason}): it may be cut short or of another kind; "
        "download or save it again"
    )


def _state_dict(content: object, path: Path) -> Weights:
    """The state dict inside a checkpoint, wrappers and `module.` prefixes taken off."""
    for _ in WRAPPERS:
        content = _wrapper(content) or content
    if not isinstance(content, dict) or not content:
        what = "an empty dict" if isinstance(content, dict) else type(content).__name__
        raise ModelError(
            f"{path}: expected names and tensors (a state dict), got {what}; save "
            "model.state_dict()"
        )
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ModelError(
                f"{path}: expected names and tensors (a state dict), got "
                f"{type(value).__name__} under {name!r}; save model.state_dict(), alone or under "
                f"one of {', '.join(WRAPPERS)}"
            )
    while all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _wrapper(content: object) -> dict[Any, Any] | None:
    """The first non-empty dict that a dict holds under a wrapper's name."""
    if isinstance(content, dict):
        for key in WRAPPERS:
            if isinstance(content.get(key), dict) and content[key]:
                inner: dict[Any, Any] = content[key]
                return inner
    return None


def _layouts(weights: Weights, family: str | None = None) -> dict[str, Weights]:
    """The weights under our names, for each layout they might be in; timm's names are ours."""
    layouts = {"timm": weights}
    for name, rules in OFFICIAL.items():
        if family in (None, name):
            renamed = {_rename(key, rules): weights[key] for key in weights}
            if len(renamed) == len(weights):  # no tensor may vanish under another of the same name
                layouts[f"official {name}"] = renamed
    return layouts


def _rename(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class _Differences:
    """Names that only the model has, only the file has, or both with different shapes."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def _compare(own: Weights, file: Weights) -> _Differences:
    return _Differences(
        missing=[name for name in own if name not in file and not OPTIONAL.search(name)],
        unexpected=[name for name in file if name not in own and not OPTIONAL.search(name)],
        misshaped=[name for name in own if name in file and own[name].shape != file[name].shape],
    )


def _describe(
    path: Path, own: Weights, file: Weights, raw: Weights, differences: _Differences
) -> str:
    lines = [f"{path} does not fit the model; nothing was loaded"]
    shapes = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(file[name].shape)})"
        for name in differences.misshaped
    ]
    for what, entries in (
        ("missing", differences.missing),
        ("unexpected", differences.unexpected),
        ("mis-shaped", shapes),
    ):
        if entries:
            more = f", and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
            lines.append(f"{len(entries)} {what}: {', '.join(entries[:LISTED])}{more}")
    lines.append(_class_hint(own, file, differences) or _family_hint(own, raw))
    return "\n  ".join(line for line in lines if line)


def _class_hint(own: Weights, file: Weights, differences: _Differences) -> str:
    """Where only the number of classes differs: both numbers, and the flag that sets it."""
    fit_but_for_classes = [
        HEAD.match(name)
        and own[name].ndim == file[name].ndim
        and own[name].shape[1:] == file[name].shape[1:]
        for name in differences.misshaped
    ]
    if differences.missing or differences.unexpected or not all(fit_but_for_classes):
        return ""
    ours, theirs = (len(weights[differences.misshaped[0]]) for weights in (own, file))
    return f"The file has {theirs} classes, the model {ours}: `--classes {theirs}` sets the count"


def _family_hint(own: Weights, raw: Weights) -> str:
    """The zoo model that the file fits far better than this one, if there is one."""
    layouts = _layouts(raw)
    this = max(_agreement(own, renamed) for renamed in layouts.values())
    others = [
        (_agreement(other, renamed), f"{name} ({layout} layout)")
        for name, other in _zoo_state_dicts().items()
        for layout, renamed in layouts.items()
    ]
    best, looks_like = max(others, key=itemgetter(0))
    if best >= LOOKS_LIKE and best > this:
        return f"Weights of another model? The file looks like {looks_like}"
    if this < 0.5:
        return "Weights of another model? The file looks like no model of the zoo"
    return ""


def _agreement(own: Weights, file: Weights) -> float:
    """The share of all names that both sides have with the same shape, 0 to 1."""
    same = sum(own[name].shape == file[name].shape for name in own if name in file)
    return same / len(own.keys() | file.keys())


def _zoo_state_dicts() -> dict[str, Weights]:
    """Names and shapes of every zoo model, built without memory for the weights."""
    with torch.device("meta"):
        return {name: create_model(name).state_dict() for name in list_models()}

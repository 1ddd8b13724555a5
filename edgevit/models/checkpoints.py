"""Loads checkpoint files into zoo models: official and timm layouts, always safe, always strict."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from edgevit.models.checkpoint_files import read_state_dict
from edgevit.models.layouts import layouts
from edgevit.models.registry import (
    ModelError,
    create_model,
    list_models,
    model_config,
    nearest_names,
)
from edgevit.models.resize import resize_tables

Weights = dict[str, Tensor]

# An index table that some files hold and some do not: the model has its own.
OPTIONAL = re.compile(r"(^|\.)attention_bias_idxs$")
HEAD = re.compile(r"^(head|head_dist)\.(l\.)?(weight|bias)$")
TEACHER = ("head_dist.", "dist_token")
LISTED = 8
LOOKS_LIKE = 0.9


@dataclass(frozen=True)
class Loaded:
    """What is not as in the file, in plain words, and whether a head kept its own weights."""

    notes: tuple[str, ...]
    new_head: bool


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    family: str | None = None,
    *,
    new_head: bool = False,
) -> Loaded:
    """Load a `.pth`, `.pt`, `.bin` or `.safetensors` file into the model, all of it or nothing.

    The file may hold a training checkpoint around its state dict (`model`, `state_dict`, `module`,
    `model_ema`), and names in timm's layout or the official one. `family` limits the official
    layouts that are tried. Positional tables of another input size are resized. `new_head` keeps
    the model's own classifier where only the number of classes differs. Code in a file is never
    run. Raises ModelError for a file that cannot be read, or that has missing, unexpected or
    mis-shaped tensors, which it lists.
    """
    path = Path(path)
    _check_family(family)
    weights = read_state_dict(path)
    own = model.state_dict()
    found = layouts(weights, family)
    fitted = min(found.values(), key=lambda renamed: _compare(own, renamed).count)
    fitted, notes = resize_tables(own, fitted)
    fitted, kept = _keep_heads(own, fitted) if new_head else (fitted, ())
    differences = _compare(own, fitted)
    if differences.count:
        raise ModelError(_describe(path, own, fitted, weights, differences))
    model.load_state_dict({**own, **{name: fitted[name] for name in own if name in fitted}})
    return Loaded((*notes, *kept), new_head=bool(kept))


def _check_family(family: str | None) -> None:
    known = list(dict.fromkeys(model_config(name).family for name in list_models()))
    if family is not None and family not in known:
        near = nearest_names(family, known) or known
        raise ModelError(f"unknown model family {family!r}; expected {' or '.join(near)}")


def _keep_heads(own: Weights, file: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The file's tensors with the model's own heads where the class count differs, and a note."""
    names = [name for name in own if name in file and _differs_in_classes(name, own, file)]
    if not names:
        return file, ()
    heads = " and ".join(dict.fromkeys(name.partition(".")[0] for name in names))
    ours, theirs = (len(weights[names[0]]) for weights in (own, file))
    note = f"{heads} re-initialised: the file has {theirs} classes, the model {ours}"
    return {**file, **{name: own[name] for name in names}}, (note,)


def _differs_in_classes(name: str, own: Weights, file: Weights) -> bool:
    """Whether it is a classifier's tensor, and the number of classes all that differs."""
    ours, theirs = own[name], file[name]
    return (
        HEAD.match(name) is not None
        and ours.ndim == theirs.ndim
        and ours.shape[1:] == theirs.shape[1:]
        and len(ours) != len(theirs)
    )


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
    class_hint = _class_hint(own, file, differences)
    lines += [class_hint] if class_hint else [_head_hint(differences), _family_hint(own, raw)]
    return "\n  ".join(line for line in lines if line)


def _class_hint(own: Weights, file: Weights, differences: _Differences) -> str:
    """Where only the number of classes differs: both numbers, and the flag that sets it."""
    misshaped = differences.misshaped
    if differences.missing or differences.unexpected:
        return ""
    if not all(_differs_in_classes(name, own, file) for name in misshaped):
        return ""
    ours, theirs = (len(weights[misshaped[0]]) for weights in (own, file))
    return f"The file has {theirs} classes, the model {ours}: `--classes {theirs}` sets the count"


def _head_hint(differences: _Differences) -> str:
    """Where all that one side lacks is the teacher's head, and DeiT's token for it."""
    for names, one, other in (
        (differences.unexpected, "file", "model"),
        (differences.missing, "model", "file"),
    ):
        stray = differences.missing + differences.unexpected
        if names and names == stray and all(name.startswith(TEACHER) for name in names):
            return f"The {one} has a distillation head (head_dist), the {other} has none"
    return ""


def _family_hint(own: Weights, raw: Weights) -> str:
    """The zoo models that the file fits far better than this one, if there are any."""
    found = layouts(raw)
    this = max(_agreement(own, renamed) for renamed in found.values())
    others = {
        (name, layout): _agreement(other, renamed)
        for name, other in _zoo_state_dicts(tuple(list_models())).items()
        for layout, renamed in found.items()
    }
    best = max(others.values())
    if best >= LOOKS_LIKE and best > this:
        nearest = [key for key, agreement in others.items() if agreement == best]
        names = [name for name, layout in nearest if layout == nearest[0][1]]
        looks_like = f"{' or '.join(names)} ({nearest[0][1]} layout)"
        return f"Weights of another model? The file looks like {looks_like}"
    if this < 0.5:
        return "Weights of another model? The file looks like no model of the zoo"
    return ""


def _agreement(own: Weights, file: Weights) -> float:
    """The share of all names that both sides have with the same shape, classes aside, 0 to 1."""
    same = sum(
        own[name].shape == file[name].shape or _differs_in_classes(name, own, file)
        for name in own
        if name in file
    )
    return same / len(own.keys() | file.keys())


@lru_cache(maxsize=1)
def _zoo_state_dicts(models: tuple[str, ...]) -> dict[str, Weights]:
    """Names and shapes of these zoo models' weights, built without memory for them."""
    with torch.device("meta"):
        return {name: create_model(name).state_dict() for name in models}

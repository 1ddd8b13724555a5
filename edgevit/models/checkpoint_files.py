"""Opens checkpoint files: runs no code in them, and finds the state dict inside its wrappers."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgevit.models.registry import ModelError

Weights = dict[str, Tensor]

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
WRAPPERS = ("model", "state_dict", "module", "model_ema")


def read_state_dict(path: Path) -> Weights:
    """The names and tensors in a `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    Training checkpoints around it (`model`, `state_dict`, `module`, `model_ema`) and `module.`
    prefixes are taken off. Raises ModelError for a file that cannot be read, wants to run code, or
    holds anything else.
    """
    return _state_dict(_read(path), path)


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

"""Files that appear whole or not at all: a full disk or a power cut leaves the old one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from edgevit.training.options import TrainingError
from edgevit.training.progress import EpochRow


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the goal, to the disk, then rename. Raises TrainingError where it cannot."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the name: no empty file behind a name
        new.replace(path)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. What was there before is whole"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: str | None = None) -> None:
    """A .safetensors file; `about` goes into its header. Tensors may share memory."""
    from safetensors.torch import save

    # Not safetensors' own writing to a file: it says "I/O error" where the disk is full.
    apart = {
        name: value.detach().cpu().contiguous().clone() if value.device.type == "cpu"
        else value.detach().cpu().contiguous()
        for name, value in tensors.items()
    }  # fmt: skip
    write_whole(path, save(apart, {"format": "pt"} | ({"edgevit": about} if about else {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors on the CPU and what `about` said. Raises TrainingError for a damaged file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("edgevit", "")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except Exception as error:  # safetensors' own error type, OSError
        raise TrainingError(
            f"{path} cannot be read ({error}): it is damaged or no file of edgevit train; "
            "start again in another folder"
        ) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """JSON for people too."""
    write_whole(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def write_log(path: Path, rows: Sequence[EpochRow]) -> None:
    """log.csv: one line an epoch; a value that there is none of is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        for name in ("top1", "top5", "ema_top1"):
            if values[name] is not None:
                values[name] = f"{values[name]:.3f}"
        for name in ("train_loss", "val_loss", "lr"):
            values[name] = f"{values[name]:.6g}"
        values["seconds"] = f"{values['seconds']:.1f}"
        writer.writerow(values)
    write_whole(path, text.getvalue().encode())


def same_module(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Raise TrainingError unless the tensors are this module's, by name and shape."""
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    for what, names in (
        ("lacks", missing),
        ("also has", unexpected),
        ("has in another shape", shapes),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise TrainingError(
                f"{where} is of another model: it {what} {names[0]}{more}. Give the model that "
                "the run was begun with"
            )

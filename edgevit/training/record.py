"""train.json: everything that it takes to repeat a run, and what came of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from edgevit.training.files import write_json
from edgevit.training.options import TrainOptions
from edgevit.training.parallel import Parallel
from edgevit.training.result import TrainResult

MODEL, LABELS, LOG, RECORD = "model.safetensors", "labels.txt", "log.csv", "train.json"
SCHEMA = 1
PACKAGES = ("edgevit", "torch", "accelerate", "numpy", "pillow", "safetensors")


def write_record(
    result: TrainResult, options: TrainOptions, told: Mapping[str, Any], parallel: Parallel
) -> None:
    """Write the record of a run that ended, or that its time limit stopped."""
    scores = result.best.scores
    write_json(
        result.out / RECORD,
        {
            "schema_version": SCHEMA,
            "finished": result.finished,
            "best": asdict(result.best)
            | {"top1_percent": scores.top1_percent, "top5_percent": scores.top5_percent},
            "last": asdict(result.rows[-1]),
            "seconds": result.seconds,
            "notes": result.notes,
            "settings": told,
            "preprocess": asdict(options.preprocess) if options.preprocess else None,
            "processes": parallel.world,
            "device": str(parallel.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """The installed packages that decide the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

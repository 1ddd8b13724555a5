"""The table of targets, what each is asked, and what it answers."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from converters.errors import ConvertError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Precision = str
PRECISIONS = ("fp32", "fp16", "w8", "w8a8", "w8a16", "int8")


@dataclass(frozen=True)
class Job:
    """One conversion: input (1, 3, height, width), float32 in [0, 1] or uint8, to `file`."""

    file: Path
    precision: Precision
    height: int
    width: int
    input_dtype: str = "float32"
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lowered:
    """What a target wrote: versions of its tools and the rewrites it applied."""

    tool_versions: dict[str, str]
    rewrites: dict[str, int] = field(default_factory=dict)


Lower = Callable[["ExportedProgram", Job], Lowered]

# Combinations that a vendor's converter accepts and that we refuse, with the measured reason.
REFUSED: dict[tuple[str, Precision], str] = {
    ("executorch", "fp16"): (
        "XNNPACK's float16 graph answers without an error and wrongly where the CPU has no float16 "
        "arithmetic (docs/results/fp16-executorch.md)"
    ),
}


@dataclass(frozen=True)
class Target:
    """A row of the target table."""

    name: str
    file: str
    module: str
    engine: str
    default_precision: Precision
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...]
    cost: int
    """Rough conversion cost; the dearest target starts first."""
    rehearsed: bool = False
    """Whether a worker that waits for the model does well to convert a tiny one meanwhile."""


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "coreml", "model.mlpackage", "converters.lower.coreml", "coreml", "fp16",
            ("fp16", "fp32"), ("torch", "coremltools"), 2,
        ),
        Target(
            "tflite", "model.tflite", "converters.lower.tflite", "litert", "fp32",
            ("fp32", "fp16"), ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer"), 3,
        ),
        Target(
            "executorch", "model.pte", "converters.lower.executorch", "executorch", "fp32",
            ("fp32",), ("torch", "executorch"), 4, rehearsed=True,
        ),
        Target(
            "onnx", "model.onnx", "converters.lower.onnx", "onnxruntime", "fp32",
            ("fp32", "fp16"), ("torch", "onnx", "onnxscript", "onnxruntime"), 1,
        ),
    )
}  # fmt: skip


def resolve_targets(names: str | list[str]) -> list[str]:
    """Target names from 'all', 'a,b' or a list, in table order. Raises ConvertError on a typo."""
    asked = [n.strip() for n in (names.split(",") if isinstance(names, str) else names)]
    for name in asked or [""]:
        if name not in TARGETS and name != "all":
            raise ConvertError(
                f"unknown target '{name}'{_near(name, TARGETS)}. Expected 'all' or some of: "
                f"{', '.join(TARGETS)}"
            )
    return [n for n in TARGETS if n in asked or "all" in asked]


def check_precision(target: str, precision: Precision | None) -> Precision:
    """The precision a target will use. Raises ConvertError where it has none of that name."""
    row = TARGETS[target]
    if precision is None:
        return row.default_precision
    if precision not in PRECISIONS:
        raise ConvertError(
            f"unknown precision '{precision}'{_near(precision, PRECISIONS)}. Expected one of: "
            f"{', '.join(PRECISIONS)}"
        )
    if precision not in row.precisions:
        reason = REFUSED.get((target, precision), "no converter here makes it")
        raise ConvertError(
            f"target '{target}' has no precision '{precision}': {reason}. Expected one of "
            f"{', '.join(row.precisions)}; leave --precision out, or name the targets without it"
        )
    return precision


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" (did you mean '{close[0]}'?)" if close else ""


def lower_to(target: str, program: ExportedProgram, job: Job) -> Lowered:
    """Convert an exported program and write it to `job.file`."""
    row = TARGETS[target]
    lower: Lower = importlib.import_module(row.module).lower
    return lower(program, job)


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by distribution name; a package that is absent is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

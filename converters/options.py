"""What a person may ask of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConvertOptions:
    """What `edgevit convert` takes. size in pixels; jobs = targets converted side by side.

    weights is a checkpoint file or `hf:ORG/NAME[@REVISION][/FILE]`.
    """

    targets: str | list[str] = "all"
    weights: Path | str | None = None
    precision: str | None = None
    size: int | None = None
    classes: int | None = None
    labels: Path | None = None
    input_dtype: str = "float32"
    force: bool = False
    jobs: int | None = None

"""What a bundle's manifest.json and config.yaml say about the conversion that made it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from converters.lower.base import TARGETS
from converters.pool import Outcome
from runtime.digest import sha256_of, size_of
from runtime.environment import edgevit_version
from runtime.manifest import (
    LABELS_NAME,
    Artifact,
    Manifest,
    ModelInfo,
    ReparamProof,
    TensorSpec,
    Verification,
)

if TYPE_CHECKING:
    from converters.options import ConvertOptions
    from converters.source import Source


def artifact_of(target: str, precision: str, folder: Path, outcome: Outcome) -> Artifact:
    """The manifest's entry of a target that came out."""
    file = folder / TARGETS[target].file
    checked = outcome.verified
    return Artifact(
        target=target,
        file=file.name,
        sha256=sha256_of(file),
        size_bytes=size_of(file),
        precision=precision,
        input=TensorSpec(**checked["input"]),
        output=TensorSpec(**checked["output"]),
        engine=TARGETS[target].engine,
        tool_versions=outcome.lowered["tool_versions"],
        rewrites=outcome.lowered["rewrites"],
        delegation=checked["delegation"],
        verification=Verification.model_validate(checked["verification"]),
        timings_s={k: round(v, 3) for k, v in outcome.seconds.items()},
    )


def manifest_of(
    source: Source,
    proof: ReparamProof,
    outcomes: dict[str, Outcome],
    artifacts: dict[str, Artifact],
    *,
    labels: str | None,
    reference_sha256: str,
    timings_s: dict[str, float],
    side_by_side: int,
) -> Manifest:
    """The manifest of a whole conversion. labels is the file's name in the bundle."""
    return Manifest(
        edgevit_version=edgevit_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelInfo(
            ref=source.ref,
            family=source.family,
            num_classes=source.num_classes,
            weights=source.weights,
            weights_sha256=source.weights_sha256,
            trained=source.trained,
            notes=list(source.notes),
        ),
        preprocessing=source.preprocessing,
        classes=source.num_classes,
        labels=labels,
        reference_sha256=reference_sha256,
        reparam=proof,
        artifacts=artifacts,
        failures={t: o.failure for t, o in outcomes.items() if o.failure},
        timings_s={k: round(v, 3) for k, v in timings_s.items()},
        machine={
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "targets_side_by_side": side_by_side,
        },
    )


def config_of(source: Source, options: ConvertOptions, precisions: dict[str, str]) -> str:
    """config.yaml: what to say to get this bundle again."""
    return yaml.safe_dump(
        {
            "model": source.ref,
            "weights": str(options.weights) if options.weights else None,
            "weights_sha256": source.weights_sha256,
            "targets": list(precisions),
            "precision": options.precision,
            "precisions": precisions,
            "size": [source.preprocessing.height, source.preprocessing.width],
            "classes": source.num_classes,
            "input": options.input_dtype,
            "labels": LABELS_NAME if options.labels else None,
            "edgevit": edgevit_version(),
        },
        sort_keys=False,
    )

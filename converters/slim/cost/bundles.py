"""Small bundles of networks that are made to be measured, each of one artefact.

The way is that of a conversion (export, fold with proof, lower, verify on the engine), without what
a user's bundle has besides. prepare() is the half that needs the torch module, finish() the half
that needs the vendor's tools; what lies between them can travel as files to another process.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converters.export import Normalized, export_folded, export_source
from converters.lower.base import TARGETS, Job, lower_to
from converters.pictures import proof_pictures
from converters.pool import Outcome
from converters.records import artifact_of, manifest_of
from converters.refs.base import Source, class_count
from converters.reparam import reparameterize
from converters.slim.errors import SlimFailed
from converters.source import state_digest
from converters.verify import verify_artifact
from edgevit.models.registry import IMAGENET_MEAN, IMAGENET_STD
from runtime.digest import sha256_of
from runtime.environment import edgevit_version
from runtime.manifest import (
    MANIFEST_NAME,
    REFERENCE_NAME,
    ModelInfo,
    Preprocessing,
    ReparamProof,
)
from runtime.sessions.base import Array

PROGRAM, FACTS = "program.pt2", "facts.json"
PROOF_INPUTS = 2
NOTE = "made to be measured by a latency table, not to be used"


@dataclass(frozen=True)
class Prepared:
    """A folded network: `source` says what it is (its module is not needed any more).

    pictures (N,H,W,3) and outputs (N,classes) float32; program is its exported form, folded.
    """

    source: Source
    proof: ReparamProof
    pictures: Array
    outputs: Array
    program: torch.export.ExportedProgram


def source_of(ref: str, module: nn.Module, side: int, family: str, weights: str) -> Source:
    """A network as converters take it: ImageNet's normalisation goes in, as in any of the zoo.

    side is that of its square input in pixels, weights is 'random' or 'given'; it is said to be fit
    for latency only. Raises ConvertError where it gives no logits.
    """
    module = module.eval()
    preprocessing = Preprocessing(
        mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), height=side, width=side, crop_pct=1.0,
        interpolation="bicubic",
    )  # fmt: skip
    classes = class_count(ref, module, side, side)
    digest = state_digest(module)
    return Source(ref, module, preprocessing, classes, family, weights, digest, False, (NOTE,))


def prepare(source: Source) -> Prepared:
    """Export and fold. Raises ConvertError, ProofFailed where folding changed the function."""
    pre = source.preprocessing
    pictures: Array = proof_pictures(pre.height, pre.width)
    inputs_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    folded = reparameterize(export_source(source), inputs_BCHW[:PROOF_INPUTS])
    eager = Normalized(source).eval()
    with torch.no_grad():
        outputs: Array = torch.cat([eager(x[None].clone()) for x in inputs_BCHW]).numpy()
    program = export_folded(folded.module, inputs_BCHW[:1])
    return Prepared(source, folded.proof, pictures, outputs, program)


def save(prepared: Prepared, folder: Path) -> None:
    """Put it on the disk for another process's finish()."""
    source = prepared.source
    program = io.BytesIO()
    torch.export.save(prepared.program, program)
    (folder / PROGRAM).write_bytes(program.getvalue())
    np.savez(folder / REFERENCE_NAME, inputs=prepared.pictures, outputs=prepared.outputs)
    model = ModelInfo(
        ref=source.ref, family=source.family, num_classes=source.num_classes,
        weights=source.weights, weights_sha256=source.weights_sha256, trained=source.trained,
        notes=list(source.notes),
    )  # fmt: skip
    facts = {
        "model": model.model_dump(),
        "preprocessing": source.preprocessing.model_dump(),
        "proof": prepared.proof.model_dump(),
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load(folder: Path) -> Prepared:
    """What save() put there."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    model = ModelInfo.model_validate(facts["model"])
    source = Source(
        model.ref, nn.Identity(), Preprocessing.model_validate(facts["preprocessing"]),
        model.num_classes, model.family, model.weights, model.weights_sha256, model.trained,
        tuple(model.notes),
    )  # fmt: skip
    with np.load(folder / REFERENCE_NAME, allow_pickle=False) as arrays:
        pictures, outputs = arrays["inputs"], arrays["outputs"]
    program = torch.export.load(folder / PROGRAM)
    proof = ReparamProof.model_validate(facts["proof"])
    return Prepared(source, proof, pictures, outputs, program)


def finish(prepared: Prepared, target: str, precision: str, folder: Path) -> None:
    """Lower to `target`, verify on its engine, and write the bundle's files into `folder`.

    Raises SlimFailed where the artefact does not answer as torch does, and what the vendor raises.
    """
    source, pre = prepared.source, prepared.source.preprocessing
    np.savez(folder / REFERENCE_NAME, inputs=prepared.pictures, outputs=prepared.outputs)
    job = Job(
        folder / TARGETS[target].file, precision, pre.height, pre.width,
        description=f"{source.ref}, {NOTE}", metadata={"edgevit": edgevit_version()},
    )  # fmt: skip
    outcome = Outcome()
    started = time.perf_counter()
    lowered = lower_to(target, prepared.program, job)
    outcome.seconds["lower"] = time.perf_counter() - started
    outcome.lowered = {"tool_versions": lowered.tool_versions, "rewrites": lowered.rewrites}
    outcome.verified = verify_artifact(target, prepared.program, job, folder)
    outcome.seconds["verify"] = time.perf_counter() - started - outcome.seconds["lower"]
    manifest = manifest_of(
        replace(source, module=nn.Identity()), prepared.proof, {target: outcome},
        {target: artifact_of(target, precision, folder, outcome)},
        labels=None, reference_sha256=sha256_of(folder / REFERENCE_NAME),
        timings_s={"total": sum(outcome.seconds.values())}, side_by_side=1,
    )  # fmt: skip
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    verdict = manifest.artifacts[target].verification
    if verdict.status == "failed":
        raise SlimFailed(f"the artefact does not answer as torch does: {verdict.reason}")

"""ONNX by torch's dynamo exporter: one file, NCHW in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from converters.lower.base import TARGETS, Job, Lowered, versions_of
from converters.lower.half import half_inside
from converters.lower.rewrites import rewritten

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lower(program: ExportedProgram, job: Job) -> Lowered:
    """Write an ONNX model with its weights inside. fp16: weights and arithmetic, float32 in/out."""
    program, rewrites = rewritten("onnx", program)
    if job.precision == "fp16":
        program = half_inside(program)
    exported = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    model.producer_name = "edgevit"
    model.doc_string = job.description
    for key, value in job.metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    job.file.write_bytes(model.SerializeToString())
    return Lowered(versions_of(TARGETS["onnx"].packages), rewrites)

"""Core ML: an ML program for iOS 16 and later that takes a picture; it cannot be run off macOS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from converters.lower.absent import absent
from converters.lower.base import TARGETS, Job, Lowered, versions_of
from converters.lower.rewrites import rewritten

# coremltools imports every framework it could convert from; of these only torch is meant here.
with absent("sklearn", "transformers", "executorch", "torchao", "tensorflow", "xgboost"):
    import coremltools as ct

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PRECISIONS = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}


def lower(program: ExportedProgram, job: Job) -> Lowered:
    """Write an .mlpackage.

    The input is an RGB image (Core ML hands pixels over as 0..255; a program that wants [0, 1]
    gets them times 1/255), the output the float32 logits.
    """
    program, rewrites = rewritten("coreml", _for_float_pixels(program))
    scale = 1.0 if job.input_dtype == "uint8" else 1 / 255
    image = ct.ImageType(
        name="image",
        shape=(1, 3, job.height, job.width),
        scale=scale,
        color_layout=ct.colorlayout.RGB,
    )
    model = ct.convert(
        program.run_decompositions({}),
        inputs=[image],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=PRECISIONS[job.precision],
        skip_model_load=True,
    )
    model.short_description = job.description
    for key, value in job.metadata.items():
        model.user_defined_metadata[key] = value
    model.save(str(job.file))
    return Lowered(versions_of(TARGETS["coreml"].packages), rewrites)


def _for_float_pixels(program: ExportedProgram) -> ExportedProgram:
    """The program for pixels that come as floats, as Core ML hands them over; it has no uint8."""
    (example,) = program.example_inputs[0]
    if example.is_floating_point():
        return program
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)  # it insists on uint8; the cast itself becomes a no-op
    module.recompile()
    return torch.export.export(module, (example.float(),))

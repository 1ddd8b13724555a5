"""TFLite (LiteRT) by litert-torch: NHWC in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import litert_torch
from torch import Tensor, nn

from converters.lower.base import TARGETS, Job, Lowered, versions_of
from converters.lower.rewrites import apply_rewrites

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class _ChannelsLastInput(nn.Module):
    """NHWC pictures to the NCHW graph; litert-torch cancels the transpose against its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image_NHWC: Tensor) -> Tensor:
        logits: Tensor = self.module(image_NHWC.permute(0, 3, 1, 2))
        return logits


def lower(program: ExportedProgram, job: Job) -> Lowered:
    """Write a .tflite flatbuffer. fp16: float16 weights, which the engine widens when it loads."""
    example = program.example_inputs[0][0].permute(0, 2, 3, 1).contiguous()
    module = program.module()
    rewrites = apply_rewrites("tflite", module)
    # An exported module is in evaluation already and refuses train() and eval().
    wrapped = _ChannelsLastInput(module)
    wrapped.training = False
    edge = litert_torch.convert(wrapped, (example,), strict_export=False)
    flatbuffer: bytes = edge.model_content()
    if job.precision == "fp16":
        flatbuffer = _float16_weights(flatbuffer)
    job.file.write_bytes(flatbuffer)
    return Lowered(versions_of(TARGETS["tflite"].packages), rewrites)


def _float16_weights(flatbuffer: bytes) -> bytes:
    """Cast the weights of every op that may have float16 ones; activations stay float32."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(flatbuffer)
    quantizer.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    return bytes(quantizer.quantize().quantized_model)

"""torch.export of a classifier with its normalisation inside, and of the graph after folding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from converters.errors import ConvertError
from converters.source import Source


class Normalized(nn.Module):
    """A picture in, logits out: (x - range * mean) / (range * std), then the model.

    x is (1, 3, H, W), float32 in [0, 1] (range 1) or uint8 (range 255). The subtraction stays an
    op: folded into a zero-padded convolution it would be wrong at the border. The division folds.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model = source.module
        pre = source.preprocessing
        self.is_identity = not any(pre.mean) and all(s == 1 for s in pre.std)
        self.cast = pre.input_dtype == "uint8"
        top = pre.input_range[1]
        self.register_buffer("mean", torch.tensor(pre.mean).reshape(1, 3, 1, 1) * top)
        self.register_buffer("std", torch.tensor(pre.std).reshape(1, 3, 1, 1) * top)

    def forward(self, x: Tensor) -> Tensor:
        if self.cast:
            x = x.to(torch.float32)
        if self.cast or not self.is_identity:
            x = (x - self.mean) / self.std
        logits: Tensor = self.model(x)
        return logits


def export_source(source: Source) -> GraphModule:
    """The exported graph of the normalised model, batch 1, weights as attributes.

    Raises ConvertError with the model's module and line where torch cannot export it.
    """
    pre = source.preprocessing
    dtype = torch.uint8 if pre.input_dtype == "uint8" else torch.float32
    example = torch.zeros(1, 3, pre.height, pre.width, dtype=dtype)
    return _export(Normalized(source).eval(), example).module()


def export_folded(module: GraphModule, example: Tensor) -> ExportedProgram:
    """The folded graph as a program again, to be saved and lowered. example: (1, ...)."""
    return _export(module, example)


def _export(module: nn.Module, example: Tensor) -> ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,))
    except Exception as error:
        if hasattr(error, "exit_code"):  # an error of ours from inside the model
            raise
        text = str(error).strip()
        raise ConvertError(
            f"torch.export cannot export the model: {text[:1500]}\n"
            "The line above is in the model's own code; make its shapes and branches independent "
            "of the data, or convert a part of it"
        ) from error

"""torch.export of a classifier with its normalisation inside, and of the graph after folding."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from converters.diagnosis import cannot_export, open_shape
from converters.errors import ConvertError
from converters.refs.base import Source


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
    try:
        program = _export(Normalized(source).eval(), example)
    except Exception as error:
        if hasattr(error, "exit_code"):  # an error of ours from inside the model
            raise
        raise ConvertError(cannot_export(source.ref, source.module, error)) from error
    problem = open_shape(source.ref, program.graph)
    if problem is not None:
        raise ConvertError(problem)
    return program.module()


def export_folded(module: GraphModule, example: Tensor) -> ExportedProgram:
    """The folded graph as a program again, to be saved and lowered. example: (1, ...).

    Raises ConvertError.
    """
    try:
        return _export(module, example)
    except Exception as error:
        raise ConvertError(
            f"torch.export cannot export the folded graph: {str(error).strip()[:1500]}\n"
            "The model itself exported: an op of it is lost in a second export"
        ) from error


def _export(module: nn.Module, example: Tensor) -> ExportedProgram:
    with torch.no_grad(), _muted():
        return torch.export.export(module, (example,))


class _Muted(io.TextIOBase):
    """A stream that drops what one thread writes; a progress bar in another goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _muted() -> Iterator[None]:
    """Keep the graph that torch prints beside its error, and its warnings, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(_Muted(sys.stderr)):
            yield
    finally:
        logging.disable(before)

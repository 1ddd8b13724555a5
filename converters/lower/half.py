"""float16 inside, float32 outside: the same program with half weights and casts at its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class _HalfInside(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x.half())
        return logits.float()


def half_inside(program: ExportedProgram) -> ExportedProgram:
    """Cast a float32 (or uint8) in, float32 out program to float16 between its ends."""
    example = program.example_inputs[0]
    return torch.export.export(_HalfInside(program.module()), tuple(example))

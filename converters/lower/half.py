"""float16 inside, float32 outside: the same program with half weights and casts at its ends."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from converters.reparam.proof import cast_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


class _HalfInside(nn.Module):
    """A graph whose float32 casts are float16 ones by now, so that uint8 pictures need no other."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        self.module = cast_graph(module, torch.float16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x.half() if x.is_floating_point() else x)
        return logits.float()


def half_inside(program: ExportedProgram) -> ExportedProgram:
    """Cast a float32 (or uint8) in, float32 out program to float16 between its ends."""
    # A copy: the module shares its weights with the program, which others read after us.
    module: GraphModule = copy.deepcopy(program.module(check_guards=False))
    return torch.export.export(_HalfInside(module), tuple(program.example_inputs[0]))

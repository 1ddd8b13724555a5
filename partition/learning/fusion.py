"""From the answers of all sub-models to one: a small MLP over their blocks, side by side."""

# Shapes: B batch, W widths of all blocks together, P blocks, Y classes.

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from edgevit.training import TrainingError
from edgevit.training.files import read_tensors, same_module, write_tensors
from partition.errors import PartitionError

SCHEMA = 1
SHRINK = 0.5


class Fusion(nn.Module):
    """Blocks (B, sum of widths) to logits (B, classes); a block of zeros is a missing sub-model.

    widths: numbers that each sub-model answers with, features or logits, in their order.
    hidden: widths of the layers between; None for one of half the input's width, but never
    narrower than the classes: the tower of ED-ViT, whose layers shrink.
    """

    def __init__(
        self, widths: Sequence[int], classes: int, hidden: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or classes < 2:
            raise PartitionError(
                f"a fusion takes blocks of 1 or more numbers and gives 2 or more classes, got "
                f"blocks of {list(widths)} and {classes} classes"
            )
        total = sum(widths)
        if hidden is None:
            hidden = (max(round(SHRINK * total), classes),)
        self.widths, self.classes, self.hidden = tuple(widths), classes, tuple(hidden)
        sizes = (total, *hidden, classes)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, blocks_BW: Tensor) -> Tensor:
        logits_BY: Tensor = self.layers(blocks_BW)
        return logits_BY

    @property
    def params(self) -> int:
        """Trained numbers."""
        return sum(value.numel() for value in self.parameters())

    def save(self, path: Path) -> None:
        """One .safetensors file that `load` needs nothing else for. Raises PartitionError."""
        about = {
            "fusion": SCHEMA,
            "widths": self.widths,
            "classes": self.classes,
            "hidden": self.hidden,
        }
        try:
            write_tensors(path, self.state_dict(), json.dumps(about))
        except TrainingError as error:
            raise PartitionError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote, in eval mode. Raises PartitionError for any other file."""
        try:
            tensors, header = read_tensors(path)
            about = json.loads(header) if header else {}
            if about.get("fusion") != SCHEMA:
                raise PartitionError(f"{path} is no fusion of edgevit partition")
            found = cls(about["widths"], about["classes"], about["hidden"])
            same_module(found, tensors, path)
        except (TrainingError, KeyError, TypeError, ValueError) as error:
            raise PartitionError(f"{path} is no fusion that can be read ({error})") from error
        found.load_state_dict(tensors)
        return found.eval()


def without(blocks_BW: Tensor, widths: Sequence[int], lost: Collection[int]) -> Tensor:
    """The blocks with those of the lost sub-models filled with zeros.

    Raises PartitionError for a sub-model that there is not.
    """
    if not set(lost) <= set(range(len(widths))):
        raise PartitionError(
            f"cannot lose sub-models {sorted(lost)} of {len(widths)}: expected 0 to "
            f"{len(widths) - 1}"
        )
    here_P = torch.ones(len(widths), device=blocks_BW.device, dtype=blocks_BW.dtype)
    here_P[sorted(lost)] = 0
    return blocks_BW * _spread(here_P, widths)


def drop_blocks(
    blocks_BW: Tensor, widths: Sequence[int], rate: float, generator: torch.Generator
) -> Tensor:
    """Each block of each example filled with zeros with probability `rate`, but never all of one.

    Of an example that would lose them all, one drawn at random is kept.
    """
    if not rate:
        return blocks_BW
    batch, parts = len(blocks_BW), len(widths)
    here_BP = torch.rand(batch, parts, generator=generator) >= rate
    spared_B = torch.randint(parts, (batch,), generator=generator)
    empty_B = ~here_BP.any(1)
    here_BP[empty_B, spared_B[empty_B]] = True
    return blocks_BW * _spread(here_BP.to(blocks_BW), widths)


def _spread(values: Tensor, widths: Sequence[int]) -> Tensor:
    """One value for each block (..., P) to one for each number of the blocks (..., W)."""
    return values.repeat_interleave(torch.tensor(widths, device=values.device), dim=-1)

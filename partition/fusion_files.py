"""The fusion head for a coordinator without torch: an .npz and a few lines of numpy.

Its input is not a picture, so it is no bundle: no engine is needed for two matrix products. The
file has weight0 (out, in), bias0 (out,), weight1, ... with a ReLU between the layers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from partition.errors import PartitionError

FUSION_NPZ = "fusion.npz"
PROOF = "proof.json"
RELU = "relu"

Layers = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class FusionProof:
    """What the head is, and how far numpy's answers are from torch's, as plan.json has it."""

    widths: list[int]
    activation: str
    params: int
    error_over_spread: float
    pictures: int

    def write(self, folder: Path) -> None:
        """Put it beside the .npz."""
        (folder / PROOF).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` wrote."""
        return cls(**json.loads((folder / PROOF).read_text()))


def save_layers(path: Path, layers: Layers) -> None:
    """Write weights (out, in) and biases (out,) of all layers."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for number, (weight, bias) in enumerate(layers):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub lists allow_pickle first


class FusionHead:
    """Answers of all sub-models (B, W), zeros for those that are gone, to logits (B, Y)."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the .npz. Raises PartitionError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                count = len(arrays.files) // 2
                layers = [(arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(count)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PartitionError(f"{path} is no fusion head of a plan ({error})") from error
        width = None
        for weight, bias in layers:
            if weight.ndim != 2 or bias.shape != weight.shape[:1] or width not in (
                None, weight.shape[1],
            ):  # fmt: skip
                raise PartitionError(f"{path} is no fusion head of a plan: its layers do not fit")
            width = weight.shape[0]
        if not layers:
            raise PartitionError(f"{path} is no fusion head of a plan: it has no layers")
        return cls(layers)

    @property
    def widths(self) -> list[int]:
        """Numbers that go in, between the layers, and out."""
        return [self.layers[0][0].shape[1], *(len(bias) for _, bias in self.layers)]

    def __call__(self, blocks_BW: NDArray[np.float32]) -> NDArray[np.float32]:
        x = blocks_BW
        for number, (weight, bias) in enumerate(self.layers):
            x = (x if number == 0 else np.maximum(x, 0)) @ weight.T + bias
        return x

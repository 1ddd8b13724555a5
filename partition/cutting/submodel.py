"""A part of a ViT that knows some of the classes, with a head of its own for training."""

# Shapes: B batch, C width of this part, Y logits of this part.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from edgevit.models.vit import VisionTransformer
from edgevit.training import TrainingError
from edgevit.training.files import read_tensors, same_module, write_tensors
from partition.cutting.geometry import Geometry, geometry_of
from partition.cutting.slicing import Kept, slice_vit
from partition.errors import PartitionError

ANSWERS = ("features", "logits")
SCHEMA = 1


class Submodel(nn.Module):
    """A sliced ViT and its head over `classes`, after a logit for all other classes if `other`.

    Images (B, 3, input_size, input_size) to the class token after the last norm (B, width) where
    `answer` is "features", to logits (B, outputs) where it is "logits". Both are always there, as
    `features` and `head`, so that the answer may be set after training.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        classes: Sequence[int],
        kept: Kept,
        *,
        other: bool = True,
        answer: str = "features",
    ) -> None:
        super().__init__()
        if answer not in ANSWERS:
            raise PartitionError(
                f"a sub-model answers with {' or '.join(ANSWERS)}, not with '{answer}'"
            )
        outputs = len(classes) + other
        if vit.head.out_features != outputs:
            raise PartitionError(
                f"a sub-model of {len(classes)} classes {'with' if other else 'without'} a logit "
                f"for the others has {outputs} logits, got a head of {vit.head.out_features}"
            )
        self.head = vit.head
        self.vit = vit
        self.vit.head = nn.Identity()  # type: ignore[assignment]  # features, not logits
        self.classes = tuple(classes)
        self.kept, self.other, self.answer = kept, other, answer

    @classmethod
    def cut(
        cls, model: nn.Module, kept: Kept, classes: Sequence[int], *, other: bool = True
    ) -> Self:
        """Slice a full ViT. The rows of its head stay; that of "other" is the mean of the rest.

        Raises PartitionError.
        """
        vit = slice_vit(model, kept)
        rest = sorted(set(range(vit.head.out_features)) - set(classes))
        full = vit.head
        vit.head = nn.Linear(full.in_features, len(classes) + other).to(full.weight)
        with torch.no_grad():
            for mine, whole in zip(vit.head.parameters(), full.parameters(), strict=True):
                mine[other:] = whole[list(classes)]
                if other:
                    mine[0] = whole[rest].mean(0) if rest else 0.0
        return cls(vit, classes, kept, other=other)

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.head.in_features

    @property
    def outputs(self) -> int:
        """Numbers of an answer: features or logits."""
        return self.width if self.answer == "features" else self.head.out_features

    @property
    def geometry(self) -> Geometry:
        """The widths, with the head; that of what answers with features has 0 classes."""
        return replace(geometry_of(self.vit), classes=self.head.out_features)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The class token after the last norm (B, width)."""
        features_BC: Tensor = self.vit(x_BCHW)
        return features_BC

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BC = self.features(x_BCHW)
        if self.answer == "features":
            return features_BC
        logits_BY: Tensor = self.head(features_BC)
        return logits_BY

    def save(self, path: Path) -> None:
        """One .safetensors file that `load` needs nothing else for. Raises PartitionError."""
        about = {
            "submodel": SCHEMA,
            "geometry": asdict(self.geometry),
            "input_size": self.vit.input_size,
            "classes": self.classes,
            "other": self.other,
            "answer": self.answer,
            "kept": self.kept.as_json(),
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
            if about.get("submodel") != SCHEMA:
                raise PartitionError(f"{path} is no sub-model of edgevit partition")
            g = Geometry(**about["geometry"])
            vit = VisionTransformer(
                g.embed_dim, g.depth, g.heads, g.classes, about["input_size"],
                head_dim=g.head_dim, mlp_dim=g.mlp_dim,
            )  # fmt: skip
            found = cls(
                vit, about["classes"], Kept.from_json(about["kept"]),
                other=about["other"], answer=about["answer"],
            )  # fmt: skip
            same_module(found, tensors, path)
        except (TrainingError, KeyError, TypeError, ValueError) as error:
            raise PartitionError(f"{path} is no sub-model that can be read ({error})") from error
        found.load_state_dict(tensors)
        return found.eval()

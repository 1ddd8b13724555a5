"""The network that subnets inherit from, as a process of its own gets it: by files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from converters.refs.base import seeded
from converters.slim.families.base import Family, Importance, Subnet
from converters.slim.families.registry import family_of
from converters.slim.pictures import Pictures, batches
from converters.slim.slicing import settle_statistics
from edgevit.models.shapes import shape_from_json

ABOUT, WEIGHTS = "source.json", "model.safetensors"
BLOCKS, CHANNELS = "blocks.json", "channels.safetensors"


@dataclass(frozen=True)
class About:
    """What source.json says. side in pixels; mean and std apply to RGB in [0, 1].

    supernet: whether it is a family's supernet, and not one network of the family.
    """

    family: str
    shape: dict[str, Any]
    supernet: bool
    classes: int
    side: int
    mean: list[float]
    std: list[float]

    def build(self) -> nn.Module:
        """The module in eval mode, random and seeded."""
        family = family_of(self.family)
        shape = shape_from_json(self.family, self.shape)
        with seeded():
            if self.supernet:
                return family.supernet(shape, self.classes, self.side).eval()
            return shape.build(self.classes, self.side)

    def save(self, folder: Path) -> None:
        """Write it beside the weights."""
        (folder / ABOUT).write_text(json.dumps(vars(self), indent=1) + "\n")


@dataclass(frozen=True)
class Ground:
    """All that subnets are made and scored with."""

    about: About
    module: nn.Module
    family: Family
    importance: Importance
    pictures: Pictures

    def inherited(self, subnet: Subnet) -> nn.Module:
        """The subnet's network with the source's weights, BatchNorm settled."""
        about = self.about
        module = self.family.inherit(
            self.module, subnet, self.importance, about.classes, about.side
        )
        settle_statistics(module, (x for x, _ in self.settling()))
        return module

    def settling(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training pictures."""
        pictures, about = self.pictures, self.about
        return batches(pictures.settle, pictures.settle_labels, about.mean, about.std)

    def holding(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the pictures held out."""
        pictures, about = self.pictures, self.about
        return batches(pictures.held, pictures.held_labels, about.mean, about.std)


def save_source(module: nn.Module, about: About, folder: Path) -> None:
    """Write a source into a folder."""
    tensors = {name: value.detach().contiguous().clone() for name, value in _state(module).items()}
    save_file(tensors, folder / WEIGHTS)
    about.save(folder)


def load_source(folder: Path) -> tuple[About, nn.Module]:
    """What `save_source` wrote, in eval mode."""
    about = About(**json.loads((folder / ABOUT).read_text()))
    module = about.build()
    module.load_state_dict(load_file(folder / WEIGHTS))
    return about, module.eval()


def save_importance(importance: Importance, folder: Path) -> None:
    """Write an importance into a folder."""
    (folder / BLOCKS).write_text(json.dumps(importance.blocks) + "\n")
    save_file(
        {n: v.detach().contiguous() for n, v in importance.channels.items()}, folder / CHANNELS
    )


def load_importance(folder: Path) -> Importance:
    """What `save_importance` wrote."""
    blocks = tuple(tuple(map(float, stage)) for stage in json.loads((folder / BLOCKS).read_text()))
    return Importance(blocks, load_file(folder / CHANNELS))


def ground_of(inputs: Mapping[str, Path]) -> Ground:
    """The ground of a step, from the folders source, importance and pictures."""
    return _ground(*(inputs[role] for role in ("source", "importance", "pictures")))


@lru_cache(maxsize=1)
def _ground(source: Path, importance: Path, pictures: Path) -> Ground:
    about, module = load_source(source)
    return Ground(
        about, module, family_of(about.family), load_importance(importance), Pictures.load(pictures)
    )


def _state(module: nn.Module) -> Mapping[str, Tensor]:
    state: Mapping[str, Tensor] = module.state_dict()
    return state


def params_of(module: nn.Module) -> int:
    """How many values are trained."""
    return sum(value.numel() for value in module.parameters())


def channels_last(module: nn.Module) -> nn.Module:
    """The layout that the CPU's convolutions compute in, in place."""
    move: Any = module.to  # its declaration forgets this argument
    move(memory_format=torch.channels_last)
    return module

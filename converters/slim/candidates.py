"""Subnets as JSON and as keys, and what a search asks about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from converters.slim.errors import SlimError
from converters.slim.families.base import Action, Family, Importance, Subnet
from converters.slim.objective import Standing
from edgevit.models.shapes import Shape, family_of_shape, shape_as_json, shape_from_json

AHEAD = 3  # steps of one kind that are looked ahead when parts are measured
MOST_STEPS = 10_000  # of any family from its largest network to its smallest


@dataclass(frozen=True)
class Score:
    """A subnet on the pictures held out of training: top-1 in percent, cross-entropy in nats.

    params counts its trained parameters.
    """

    top1: float
    loss: float
    params: int


@dataclass(frozen=True)
class Candidate:
    """A subnet one action away, and its predicted latency in milliseconds."""

    action: Action
    subnet: Subnet
    ms: float


Ahead = Callable[[], Sequence[Shape]]
"""The shapes that are likely to be asked about next."""


class Scorer(Protocol):
    """Tells how well subnets do, with the weights of the source."""

    def score(self, subnets: Sequence[Subnet], text: str) -> list[Score]:
        """One score each; `text` is what the listener is told meanwhile."""
        ...


class Clock(Protocol):
    """Tells how long networks take on the engine and device that they are for."""

    def predict(self, shapes: Sequence[Shape], ahead: Ahead | None = None) -> list[float]:
        """Milliseconds each, from the latency table.

        Where the table lacks parts of them they are measured, and those of the shapes ahead too.
        """
        ...

    def rough(self, shape: Shape) -> float:
        """Milliseconds, guessed where the table lacks parts; nothing is measured."""
        ...

    def measure(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Milliseconds of whole networks, exported and run, measured beside one another."""
        ...


def as_json(subnet: Subnet) -> dict[str, Any]:
    """A subnet as JSON gives it back."""
    return {
        "family": family_of_shape(subnet.shape),
        "shape": json.loads(json.dumps(shape_as_json(subnet.shape))),
        "blocks": [list(stage) for stage in subnet.blocks],
    }


def from_json(values: Mapping[str, Any]) -> Subnet:
    """The subnet of `as_json`. Raises ModelError for a shape that there cannot be."""
    blocks = tuple(tuple(int(block) for block in stage) for stage in values["blocks"])
    return Subnet(shape_from_json(values["family"], values["shape"]), blocks)


def key_of(shape: Shape) -> str:
    """A shape as one line, the same for the same network."""
    return json.dumps([family_of_shape(shape), shape_as_json(shape)], sort_keys=True)


def standing(score: Score, ms: float) -> Standing:
    """The score and the latency as an objective takes them."""
    return Standing(score.top1, ms, score.params / 1e6)


def candidates_of(
    family: Family, subnet: Subnet, importance: Importance, clock: Clock
) -> list[Candidate]:
    """Every subnet one action away, once, in the order of the family's actions."""
    found: dict[Subnet, Action] = {}
    for action in family.actions(subnet, importance):
        found.setdefault(family.apply(subnet, action, importance), action)
    found.pop(subnet, None)
    times = clock.predict(
        [smaller.shape for smaller in found], lambda: _ahead(family, found, importance)
    )
    return [Candidate(a, s, ms) for (s, a), ms in zip(found.items(), times, strict=True)]


def _ahead(family: Family, found: Mapping[Subnet, Action], importance: Importance) -> list[Shape]:
    """Each action again and again, AHEAD times: starting a vendor's converter takes its time."""
    shapes = []
    for first, action in found.items():
        subnet = first
        for _ in range(AHEAD):
            alike = [
                a
                for a in family.actions(subnet, importance)
                if (a.kind, a.stage) == (action.kind, action.stage)
            ]
            if not alike:
                break
            subnet = family.apply(subnet, alike[0], importance)
            shapes.append(subnet.shape)
    return shapes


def smallest(family: Family, whole: Subnet) -> Subnet:
    """Where every action has been taken as often as it can be. Raises SlimError for no end."""
    importance = unknown_importance(whole)
    subnet = whole
    for _ in range(MOST_STEPS):
        actions = family.actions(subnet, importance)
        if not actions:
            return subnet
        subnet = family.apply(subnet, actions[0], importance)
    raise SlimError(f"the actions of the family {family.name} come to no end after {MOST_STEPS}")


def unknown_importance(whole: Subnet) -> Importance:
    """All blocks and channels alike: for what can be asked before a network is trained.

    Families that need the source's widths find them here as they do in a measured importance.
    """
    widths: tuple[int, ...] = getattr(whole.shape, "widths", ())
    return Importance(
        tuple(tuple(1.0 for _ in stage) for stage in whole.blocks),
        {f"stage{stage}": torch.ones(width) for stage, width in enumerate(widths)},
    )

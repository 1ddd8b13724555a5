"""Latencies for a search: from the latency table, or measured as whole networks; all journalled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import nn

from converters.slim.candidates import Ahead, key_of
from converters.slim.cost.predict import LatencyTable
from converters.slim.families.base import Part
from converters.slim.journal import Journal
from edgevit.models.shapes import Shape

PREDICTED, MEASURED = "predicted", "measured"
LEAST = 3  # entries of a kind for a guess at another one


class TableClock:
    """The clock of one table, for pictures of side x side pixels and so many classes."""

    def __init__(self, table: LatencyTable, journal: Journal, side: int, classes: int) -> None:
        self.table, self.journal = table, journal
        self.side, self.classes = side, classes
        self._guesses: dict[Part, float | None] = {}

    def predict(self, shapes: Sequence[Shape], ahead: Ahead | None = None) -> list[float]:
        """As candidates.Clock says. Raises SlimFailed for a part that cannot be measured."""
        new = [shape for shape in shapes if self.journal.get(PREDICTED, key_of(shape)) is None]
        missing = self._missing(new)
        if missing:
            later = self._missing(ahead()) if ahead is not None else []
            self.table.measure(dict.fromkeys([*missing, *later]))
            self._guesses.clear()
        for shape in new:
            found = self.table.latency(shape, self.side, self.classes).ms
            self.journal.keep(PREDICTED, key_of(shape), found)
        return [float(self.journal.get(PREDICTED, key_of(shape))) for shape in shapes]

    def rough(self, shape: Shape) -> float:
        """As candidates.Clock says: unknown parts by those of their kind, linear in their sizes."""
        counts = self.table.family.parts(shape, self.side, self.classes)
        total = 0.0
        for part, count in counts.items():
            guess = self._guess(part)
            if guess is None:  # nothing of its kind is known: measure it
                return self.predict([shape])[0]
            total += count * guess
        correction = self.table.correction(self.side, self.classes)
        return total if correction is None else correction.ms(total)

    def measure(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """By their names, as candidates.Clock says; what was measured before is in the journal.

        Keys of the journal are shapes: what the weights are does not change a latency.
        """
        keys = {name: _key(module) for name, module in modules.items()}
        new = {
            keys[name]: module
            for name, module in modules.items()
            if self.journal.get(MEASURED, keys[name]) is None
        }
        if new:
            found = self.table.measure_networks(list(new.values()), self.side)
            for key, measured in zip(new, found, strict=True):
                self.journal.keep(MEASURED, key, measured.ms)
        return {name: float(self.journal.get(MEASURED, key)) for name, key in keys.items()}

    def _missing(self, shapes: Sequence[Shape]) -> list[Part]:
        parts = [
            part for shape in shapes for part in self.table.missing(shape, self.side, self.classes)
        ]
        return list(dict.fromkeys(parts))

    def _guess(self, part: Part) -> float | None:
        if not self._guesses:
            entries = self.table.store.entries(self.table.setup)
            self._guesses = {known: entry.ms for known, entry in entries.items()}
        if part not in self._guesses:
            self._guesses[part] = self._fitted(part)
        return self._guesses[part]

    def _fitted(self, part: Part) -> float | None:
        """Least squares over the known parts of this kind and side, on 1 and what they compute."""
        entries = self.table.store.entries(self.table.setup)
        alike = [e for p, e in entries.items() if (p.family, p.kind, p.side) == _kind(part)]
        if len(alike) < LEAST:
            return None
        rows = np.array([_features(entry.part.dims) for entry in alike])
        solution, *_ = np.linalg.lstsq(rows, np.array([entry.ms for entry in alike]), rcond=None)
        return max(float(np.array(_features(part.dims)) @ solution), 0.0)


def _kind(part: Part) -> tuple[str, str, int]:
    return part.family, part.kind, part.side


def _features(dims: tuple[int, ...]) -> list[float]:
    """1, the sum of the sizes, and the first two's product: what a convolution costs."""
    first = dims[:2] if len(dims) > 1 else (dims[0], dims[0])
    return [1.0, float(sum(dims)), float(prod(first))]


def _key(module: nn.Module) -> str:
    """Of a network of a family by its shape, of any other by its tensors' names and sizes."""
    shape: Any = getattr(module, "shape", None)
    try:
        return key_of(shape)
    except (StopIteration, TypeError):
        told = str([(name, tuple(value.shape)) for name, value in module.state_dict().items()])
        return hashlib.sha256(told.encode()).hexdigest()

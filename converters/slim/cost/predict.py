"""The latency of a network that was never built: the sum of its parts, corrected.

with LatencyTable.open(Path("table.sqlite"), family_of("shvit"), "tflite") as table:
    table.measure(table.missing(shape, side=64, classes=10))
    table.fit(shape, side=64, classes=10)
    print(table.latency(shape, side=64, classes=10).ms)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from torch import Tensor, nn

from converters.refs.base import seeded
from converters.settle import settle
from converters.slim.cost.bundles import source_of
from converters.slim.cost.fit import LEAST, Fit, fit
from converters.slim.cost.measure import Measured, Measuring, now
from converters.slim.cost.meters import DeviceMeter, Effort, Meter, meter_for
from converters.slim.cost.records import Entry, NetworkEntry, told
from converters.slim.cost.setup import Setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError
from converters.slim.families.base import Family, Part
from edgevit.models.shapes import Shape, shape_as_json
from runtime.cancel import Progress
from runtime.devices.file import KnownDevice

CALL = "call"
FIT_NETWORKS = 8
TRIES = 50
SHOWN = 6


@dataclass(frozen=True)
class Predicted:
    """A predicted latency in milliseconds; parts has what each part adds, all its copies together.

    error is the table's own, a fraction, from networks that were left out of the fit; None without
    a fit, where the measured cost of a call is added to the sum.
    """

    ms: float
    parts: dict[Part, float]
    error: float | None

    @property
    def parts_ms(self) -> float:
        """The sum over the parts."""
        return sum(self.parts.values())


class LatencyTable:
    """The latencies of one family's parts on one engine and device; close it, or use a `with`."""

    def __init__(
        self,
        store: Store,
        meter: Meter,
        family: Family,
        *,
        jobs: int | None = None,
        effort: Effort | None = None,
        progress: Progress | None = None,
    ) -> None:
        """jobs is how many worker processes make what is measured, by default one a core.

        They start with the first measurement and wait for the next until close().
        """
        self.store, self.meter, self.family = store, meter, family
        self._read: dict[Part, Entry] = {}
        self._measuring = Measuring(meter, family, jobs, effort, progress)

    @classmethod
    def open(
        cls,
        path: Path,
        family: Family,
        target: str,
        *,
        precision: str | None = None,
        threads: int = 1,
        device: KnownDevice | None = None,
        jobs: int | None = None,
        effort: Effort | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """The table in a file, for this machine or a device. Raises SlimError, RuntimeFault."""
        meter = meter_for(target, precision, threads, device)
        try:
            store = Store(path)
        except BaseException:
            _close(meter)
            raise
        return cls(store, meter, family, jobs=jobs, effort=effort, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, let go of the file and of the device."""
        self._measuring.close()
        self.store.close()
        _close(self.meter)

    @property
    def setup(self) -> Setup:
        """What its times are of."""
        return self.meter.setup

    def missing(self, shape: Shape, side: int, classes: int) -> list[Part]:
        """The parts of a network of this shape that have no latency yet, and the call's own."""
        parts = self.family.parts(shape, side, classes)
        return self.store.missing(self.setup, [*parts, call_part(side, classes)])

    def measure(self, parts: Iterable[Part]) -> None:
        """Measure those that are not in the table. Raises SlimFailed, the others are kept then."""
        wanted = list(parts)
        for part in self.store.missing(self.setup, (p for p in wanted if p.family == CALL)):
            self._measure_call(part)
        self._measuring.parts(self.store, (part for part in wanted if part.family != CALL))

    def latency(self, shape: Shape, side: int, classes: int) -> Predicted:
        """What a network of this shape takes for a picture of side x side pixels.

        Raises SlimError naming the parts without a latency, or the setups of a table that has none
        of this one.
        """
        counts, call = self.family.parts(shape, side, classes), call_part(side, classes)
        correction = self.correction(side, classes)
        entries = self._entries([*counts] if correction is not None else [*counts, call])
        parts = _added(counts, entries)
        total = sum(parts.values())
        if correction is None:
            return Predicted(entries[call].ms + total, parts, None)
        return Predicted(correction.ms(total), parts, correction.error)

    def call_ms(self, side: int, classes: int) -> float:
        """What a call costs besides the parts. Raises SlimError where that was not measured."""
        call = call_part(side, classes)
        return self._entries([call])[call].ms

    def correction(self, side: int, classes: int) -> Fit | None:
        """The fit on the networks that the table has; None where they are too few for one."""
        found = self.store.networks(self.setup, self.family.name, side, classes).values()
        if len(found) < LEAST:
            return None
        return fit([each.parts_ms for each in found], [each.measured_ms for each in found])

    def fit(
        self, shape: Shape, side: int, classes: int, count: int = FIT_NETWORKS, seed: int = 0
    ) -> Fit:
        """Measure `count` random networks inside `shape`, with their parts, and fit the correction.

        What was measured for the same seed before is taken from the table. Raises SlimFailed.
        """
        shapes = random_shapes(self.family, shape, count, seed)
        there = self.store.networks(self.setup, self.family.name, side, classes)
        lacking = {text: each for text, each in shapes.items() if text not in there}
        self.measure(
            [
                call_part(side, classes),
                *(part for each in lacking.values() for part in self._parts(each, side, classes)),
            ]
        )
        entries = self.store.entries(self.setup)
        sums = {
            text: sum(_added(self._parts(each, side, classes), entries).values())
            for text, each in lacking.items()
        }
        texts = list(lacking)

        def keep(measured: dict[int, Measured]) -> None:
            self.store.add_networks(
                self.setup,
                [
                    NetworkEntry(
                        self.family.name, texts[number], side, classes, each.ms,
                        sums[texts[number]], each.runs, now(),
                    )
                    for number, each in measured.items()
                ],
            )  # fmt: skip

        if lacking:
            modules = [self.random_network(each, side, classes) for each in lacking.values()]
            with self.store.measuring():
                self._measuring.networks(modules, side, keep)
        correction = self.correction(side, classes)
        if correction is None:
            raise SlimError(f"a fit needs at least {LEAST} networks, got {count}")
        return correction

    def measure_networks(self, modules: Sequence[nn.Module], side: int) -> list[Measured]:
        """Measure whole networks on this engine and device, interleaved; nothing is kept of it.

        side is that of the pictures in pixels. Raises ConvertError, SlimFailed.
        """
        with self.store.measuring():
            return self._measuring.networks(modules, side)

    def random_network(self, shape: Shape, side: int, classes: int) -> nn.Module:
        """A network of the shape with random weights under which its pictures matter."""
        with seeded():
            module = shape.build(classes, side)
        settle(source_of(self.family.name, module, side, self.family.name, "random"))
        return module

    def _parts(self, shape: Shape, side: int, classes: int) -> Counter[Part]:
        return self.family.parts(shape, side, classes)

    def _measure_call(self, part: Part) -> None:
        """What a call costs besides the parts: input copied in, normalised, output copied out."""
        (classes,) = part.dims
        with seeded():
            network = Call(classes)
        (measured,) = self.measure_networks([network], part.side)
        entry = Entry(part, measured.ms, measured.spread_ms, measured.runs, 0, now())
        self.store.add(self.setup, [entry])

    def _entries(self, parts: list[Part]) -> dict[Part, Entry]:
        """At least these, out of memory where they were read before: an entry never changes."""
        if any(part not in self._read for part in parts):
            self._read = self.store.entries(self.setup)
        self._require([part for part in parts if part not in self._read])
        return self._read

    def _require(self, lacking: list[Part]) -> None:
        """Raise SlimError for parts without a latency."""
        if not lacking:
            return
        self.store.require(self.setup)
        shown = ", ".join(told(part) for part in lacking[:SHOWN])
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise SlimError(
            f"{self.store.path} has no latency of {shown}{more} on {self.setup}; measure them first"
        )


class Call(nn.Module):
    """As good as nothing between a picture and its logits: the mean colour into a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(x_BCHW.mean((2, 3)))
        return logits


def call_part(side: int, classes: int) -> Part:
    """The key of what a call costs besides the network's parts."""
    return Part(CALL, CALL, side, (classes,))


def random_shapes(family: Family, shape: Shape, count: int, seed: int) -> dict[str, Shape]:
    """`count` different random shapes inside `shape`, by their JSON; the same for a seed.

    Raises SlimError where there are not as many.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Shape] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        drawn = family.random(shape, rng).shape
        found[json.dumps(shape_as_json(drawn), sort_keys=True)] = drawn
    if len(found) < count:
        raise SlimError(
            f"expected {count} different networks inside the given shape, found {len(found)}; "
            "ask for fewer"
        )
    return found


def _added(counts: Counter[Part], entries: dict[Part, Entry]) -> dict[Part, float]:
    """What each part adds, milliseconds."""
    return {part: count * entries[part].ms for part, count in counts.items()}


def _close(meter: Meter) -> None:
    if isinstance(meter, DeviceMeter):
        meter.close()

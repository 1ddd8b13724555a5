"""Measure parts and whole networks: made side by side, then timed with nothing else running."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from converters.bundle_writer import writing
from converters.chatter import chatter_to
from converters.slim.cost.estimates import Estimate, of_part, of_whole
from converters.slim.cost.making import TEMPORARY, Made, Makers, Order, put
from converters.slim.cost.meters import Effort, Meter, Timing
from converters.slim.cost.records import Entry, told
from converters.slim.cost.store import Store
from converters.slim.errors import SlimFailed
from converters.slim.families.base import Family, Part
from runtime.cancel import Progress
from runtime.environment import describe

GROUP = 4
"""Parts that are made, measured and kept together: what a kill costs at most."""

NETWORKS = 6
"""Whole networks that are measured together."""

ROUNDS = 4
"""Each takes twice the time of the one before; only what is doubtful takes part again."""

SHORT, LONG = ", short", ", long"


@dataclass(frozen=True)
class Measured:
    """The latency of a whole network, and how far the halves of its measurement were apart."""

    ms: float
    spread_ms: float
    runs: int


class Measuring:
    """A meter, and worker processes that start when they are needed and wait until close().

    progress gets a message and the fraction of the call's work that is done.
    """

    def __init__(
        self,
        meter: Meter,
        family: Family,
        jobs: int | None = None,
        effort: Effort | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._meter, self._family = meter, family
        self._jobs, self._effort = jobs, effort or Effort()
        self._progress = progress or (lambda message, done: None)
        self._opened = ExitStack()
        self._makers: Makers | None = None

    def close(self) -> None:
        """End the workers and take away what they wrote."""
        self._makers = None
        self._opened.close()

    def parts(self, store: Store, parts: Iterable[Part]) -> None:
        """Measure those that the store lacks and keep each group as it is done.

        Raises SlimFailed naming every part that could not be measured; all others are kept then.
        """
        setup, failed = self._meter.setup, dict[Part, str]()
        with store.measuring():
            missing = store.missing(setup, parts)
            for start in range(0, len(missing), GROUP):
                group = missing[start : start + GROUP]
                self._group(store, group, start, len(missing), failed)
        if failed:
            reasons = "\n".join(f"  {told(part)}: {why}" for part, why in failed.items())
            raise SlimFailed(
                f"{len(failed)} of {len(missing)} parts could not be measured on {setup.engine}; "
                f"the others are kept:\n{reasons}"
            )
        self._progress("the latency table is whole", 1.0)

    def networks(
        self,
        modules: Sequence[nn.Module],
        side: int,
        keep: Callable[[dict[int, Measured]], None] = lambda measured: None,
    ) -> list[Measured]:
        """Measure whole networks for side x side pixels, interleaved, in the order given.

        keep is told of each group, by the networks' numbers, as it is done. Raises ConvertError for
        one that cannot be converted, SlimFailed for one that does not run.
        """
        from converters.slim.cost.bundles import source_of

        found: dict[int, Measured] = {}
        makers = self._making()
        for start in range(0, len(modules), NETWORKS):
            at, done = f"of {len(modules)} networks", start / max(1, len(modules))
            orders: dict[int, Order] = {}
            for number in range(start, min(start + NETWORKS, len(modules))):
                self._progress(f"number {number + 1} {at}: export and fold", done)
                orders[number] = order = Order(makers.place())
                name = f"{self._family.name}-{number}"
                with chatter_to(None):
                    put(source_of(name, modules[number], side, self._family.name, "given"), order)
            self._progress(f"numbers {start + 1} to {start + len(orders)} {at}: convert", done)
            made = makers.make(self._family, list(orders.values()))
            for number, order in orders.items():
                if (why := made[order].error) is not None:
                    raise SlimFailed(f"network {number + 1} was not converted: {why}")
            measured = self._whole(orders, done)
            keep(measured)
            found |= measured
            for order in orders.values():
                order.clear()
        self._progress("done", 1.0)
        return [found[number] for number in range(len(modules))]

    def _making(self) -> Makers:
        """The workers, in a scratch folder of their own."""
        if self._makers is None or self._makers.stopped:
            with writing(TEMPORARY):
                folder = tempfile.TemporaryDirectory(
                    prefix="edgevit-probes-", ignore_cleanup_errors=True
                )
            setup, scratch = self._meter.setup, Path(self._opened.enter_context(folder))
            self._makers = self._opened.enter_context(
                Makers(setup.target, setup.precision, scratch, self._jobs)
            )
        return self._makers

    def _group(
        self, store: Store, group: list[Part], start: int, total: int, failed: dict[Part, str]
    ) -> None:
        """Make, measure and keep some parts; why one is not kept goes into `failed`."""
        at, makers = f"parts {start + 1} to {start + len(group)} of {total}", self._making()

        def tell(message: str) -> None:
            self._progress(f"{at}: {message}", start / total)

        tell(f"make {', '.join(map(told, group))}")
        orders = {part: Order(makers.place(), part) for part in group}
        made = makers.make(self._family, list(orders.values()))
        for part, order in orders.items():
            if (why := _unusable(made[order])) is not None:
                failed[part] = why
        left = [part for part in group if part not in failed]
        for number in range(ROUNDS):
            if not left:
                break
            bundles = {
                f"{told(part)}{which}": bundle
                for part in left
                for which, bundle in zip((SHORT, LONG), orders[part].made, strict=True)
            }
            timings = self._meter.measure(bundles, self._effort.more(number), tell)
            entries, again = [], []
            for part in left:
                times = made[orders[part]].times
                short, long = timings[told(part) + SHORT], timings[told(part) + LONG]
                if isinstance(short, str) or isinstance(long, str):
                    failed[part] = short if isinstance(short, str) else str(long)
                    continue
                estimate = of_part(short, long, times)
                if estimate.sound:
                    runs = short.runs + long.runs
                    entries.append(_entry(part, estimate, runs, times))
                elif number + 1 < ROUNDS:
                    again.append(part)
                else:
                    failed[part] = _doubtful(estimate, short, long, times)
            store.add(self._meter.setup, entries)
            left = again
        for order in orders.values():
            order.clear()

    def _whole(self, orders: dict[int, Order], done: float) -> dict[int, Measured]:
        """Time networks; those whose halves disagree again, and the last round counts."""
        found: dict[int, Measured] = {}
        left = dict(orders)
        for round_ in range(ROUNDS):
            timings = self._meter.measure(
                {f"network {number + 1}": order.folder for number, order in left.items()},
                self._effort.more(round_),
                lambda message: self._progress(message, done),
            )
            for number in list(left):
                timing = timings[f"network {number + 1}"]
                if isinstance(timing, str):
                    raise SlimFailed(f"network {number + 1} was not measured: {timing}")
                estimate = of_whole(timing)
                found[number] = Measured(estimate.ms, estimate.spread_ms, timing.runs)
                if estimate.sound:
                    del left[number]
            if not left:
                break
        return found


def now() -> str:
    """The date of an entry."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _unusable(made: Made) -> str | None:
    if made.error is not None:
        return made.error
    if made.times < 1:
        return f"its probe says that it has the part {made.times} times more; expected 1 or more"
    return None


def _entry(part: Part, estimate: Estimate, runs: int, times: int) -> Entry:
    return Entry(part, estimate.ms, estimate.spread_ms, runs, times, now())


def _doubtful(estimate: Estimate, short: Timing, long: Timing, times: int) -> str:
    """Why a difference is not kept."""
    first, second = (f"{half * 1e3:.3g}" for half in estimate.halves_ms)
    load = describe().load_average
    what = "is not positive" if min(estimate.halves_ms) <= 0 else "cannot be trusted"
    return (
        f"the difference of its probes {what}: the halves of {short.runs + long.runs} runs give "
        f"{first} and {second} microseconds for the part (probes of {short.ms:.3g} and "
        f"{long.ms:.3g} ms, {times} times the part), after {ROUNDS} rounds. "
        + (f"The load average here is {load:.1f}. " if load is not None else "")
        + "Measure again when the machine has less else to do"
    )

"""How well the latency table predicts random networks that were never measured before.

    python benchmarks/slim_latency_table.py --on tflite executorch onnx --family efficientformer shvit
        --networks 30 --side 64 [--fit 8] [--classes 10] [--threads 1] [--work FOLDER]
        [--out docs/results/latency-table.md]

For each family and engine: --fit random networks inside the family's shape are measured and the
correction is fitted on them; then --networks others, from another seed, are predicted, and measured
as whole networks, interleaved. Parts and networks that the tables in --work have already are not
measured again, so a run that was cut off goes on; the networks of the test are always measured anew.
Exits 1 where a mean absolute percentage error is above --gate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from result_page import publish

from converters.refs.base import seeded
from converters.slim.cost.fit import Fit, mean_error
from converters.slim.cost.measure import Measured
from converters.slim.cost.predict import FIT_NETWORKS, LatencyTable, random_shapes
from converters.slim.families.base import Family
from converters.slim.families.registry import FAMILIES, family_of
from edgevit.models import create_model
from edgevit.models.shapes import Shape, shape_as_json
from runtime.environment import describe

WHOLE = {
    "efficientformer": "efficientformer_l1",
    "efficientformerv2": "efficientformerv2_s0",
    "fmvit": "fmvit_t",
    "shvit": "shvit_s1",
}
TEST_SEED = 1000
GATE = 0.08
ABOUT = """Each network is a random one inside the shape that the table names. Predicted: a + b times
the sum of its parts, a and b fitted on other random networks by relative least squares. Plain is the
sum of the parts and the cost of a call, without a fit. Error is the mean absolute percentage error
over the networks of the test; the fit's own is that of leaving one out. Spread is how far the two
halves of a network's measurement are apart, as a percentage, at the median and the worst of them."""
HEAD = "| family | engine | networks | range ms | error % | worst % | plain % | a ms | b | fit's own error % | spread % | parts | minutes |"


@dataclass(frozen=True)
class Outcome:
    """The test of one table; arrays are (networks,), milliseconds."""

    family: str
    engine: str
    predicted: np.ndarray
    plain: np.ndarray
    measured: list[Measured]
    fit: Fit
    parts: int
    minutes: float

    @property
    def ms(self) -> np.ndarray:
        return np.array([each.ms for each in self.measured])

    @property
    def error(self) -> float:
        return mean_error(self.predicted, self.ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", nargs="+", default=["tflite", "executorch", "onnx"])
    parser.add_argument("--family", nargs="+", default=list(WHOLE), choices=list(FAMILIES))
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--fit", type=int, default=FIT_NETWORKS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="workers that convert side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate", type=float, default=GATE)
    parser.add_argument("--work", type=Path, help="where the tables are kept")
    parser.add_argument("--out", default="docs/results/latency-table.md", help="'' to print only")
    options = parser.parse_args()
    load = describe().load_average
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        outcomes = [
            check(family_of(name), engine, work, options)
            for name in options.family
            for engine in options.on
        ]
    busy = f"\n\nThe load average at the start was {load:.1f}." if load is not None else ""
    command = "python benchmarks/slim_latency_table.py " + " ".join(
        [
            f"--on {' '.join(options.on)} --family {' '.join(options.family)}",
            f"--networks {options.networks} --fit {options.fit} --side {options.side}",
            f"--classes {options.classes} --threads {options.threads} --seed {options.seed}",
        ]
    )
    shapes = [f"- {name}: {WHOLE[name]}" for name in options.family]
    rows = [HEAD, "|---" * (HEAD.count("|") - 1) + "|", *map(row, outcomes)]
    publish(
        options.out,
        "Latency table: predicted against measured",
        command,
        ABOUT + busy,
        [*rows, "", "The largest networks:", "", *shapes],
    )
    return int(any(not each.error <= options.gate for each in outcomes))


def check(family: Family, engine: str, work: Path, options: argparse.Namespace) -> Outcome:
    """Fit and test one table."""
    started = time.perf_counter()
    side, classes = options.side, options.classes
    whole = shape_of(family.name, side, classes)
    path = work / f"{family.name}-{engine}.sqlite"
    tell = teller(f"{family.name} on {engine}")
    with LatencyTable.open(
        path, family, engine, threads=options.threads, jobs=options.jobs, progress=tell
    ) as table:
        fit = table.fit(whole, side, classes, options.fit, options.seed)
        there = table.store.networks(table.setup, family.name, side, classes)
        drawn = random_shapes(
            family, whole, options.networks + len(there), options.seed + TEST_SEED
        )
        fresh = [shape for text, shape in drawn.items() if text not in there][: options.networks]
        parts = {p for shape in fresh for p in table.missing(shape, side, classes)}
        table.measure(sorted(parts))
        found = [table.latency(shape, side, classes) for shape in fresh]
        call = table.call_ms(side, classes)
        modules = [table.random_network(shape, side, classes) for shape in fresh]
        measured = table.measure_networks(modules, side)
        outcome = Outcome(
            family.name, engine,
            np.array([each.ms for each in found]),
            np.array([call + each.parts_ms for each in found]),
            measured, fit, len(table.store.entries(table.setup)),
            (time.perf_counter() - started) / 60,
        )  # fmt: skip
    for shape, predicted, each in zip(fresh, found, measured, strict=True):
        print(
            f"{predicted.ms:9.4f} {each.ms:9.4f} ms {predicted.ms / each.ms - 1:+7.1%} "
            f"{json.dumps(shape_as_json(shape))}"
        )
    print(row(outcome), flush=True)
    return outcome


def shape_of(family: str, side: int, classes: int) -> Shape:
    """The shape of the family's network of the zoo inside which the random ones lie."""
    with seeded():
        module = create_model(WHOLE[family], num_classes=classes)
    shape: Shape = module.shape
    return shape


def row(outcome: Outcome) -> str:
    ms, fit = outcome.ms, outcome.fit
    spreads = [100 * each.spread_ms / each.ms for each in outcome.measured]
    cells = [
        outcome.family,
        outcome.engine,
        str(len(ms)),
        f"{ms.min():.3f} to {ms.max():.3f}",
        f"{100 * outcome.error:.1f}",
        f"{100 * np.abs(outcome.predicted / ms - 1).max():.1f}",
        f"{100 * mean_error(outcome.plain, ms):.1f}",
        f"{fit.a_ms:.4f}",
        f"{fit.b:.3f}",
        f"{100 * fit.error:.1f}",
        f"{np.median(spreads):.1f}, {max(spreads):.1f}",
        str(outcome.parts),
        f"{outcome.minutes:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def teller(what: str) -> Callable[[str, float], None]:
    """Progress on stderr, a line whenever the fraction or the step changes."""
    last: list[str] = [""]

    def tell(message: str, done: float) -> None:
        line = f"{what} {done:4.0%} {message.split(': ', maxsplit=1)[0]}"
        if line != last[0]:
            last[0] = line
            print(line, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())

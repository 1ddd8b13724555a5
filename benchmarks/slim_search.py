"""Slimming against uniform scaling and random search, and whether it lands: glyphs at 64 px.

    python benchmarks/slim_search.py [--quick] [--seeds 0 1 2] [--shares 0.7 0.5 0.35]
        [--on tflite onnx] [--family efficientformer] [--work FOLDER]
        [--out docs/results/slimming.md]

For every engine, seed and target: a search from a small network of the family, the end and the best of
both baselines fine-tuned alike, tested on pictures that chose nothing. Targets are shares of the whole
network's predicted latency. With --work a run that was ended goes on. --quick proves that it runs: one
seed, one target, one engine, digits at 32 px. Exits 1 where an end measures more than 5 percent off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from result_page import publish

from converters.refs.network_file import write_network
from converters.slim.clock import key_of
from converters.slim.cost.predict import LatencyTable
from converters.slim.families.registry import family_of
from converters.slim.options import SlimOptions
from converters.slim.pipeline import slim
from converters.slim.record import SlimRecord
from converters.slim.source import About
from edgevit.models.shapes import Shape, shape_as_json, shape_from_json
from runtime.inputs import as_it_is

SHAPES = {
    "efficientformer": {
        "widths": [32, 64, 96, 160], "depths": [3, 2, 4, 3], "attention_depths": [0, 0, 0, 1],
    },
}  # fmt: skip
EXACT = 0.05
CROSS_RUNS = 3


@dataclass(frozen=True)
class Case:
    """One search."""

    target: str
    seed: int
    share: float
    record: SlimRecord


def main() -> None:
    """Run the searches, and print and write the page."""
    args = parsed()
    with tempfile.TemporaryDirectory(prefix="edgevit-slim-") as scratch:
        work = Path(args.work or scratch)
        work.mkdir(parents=True, exist_ok=True)
        model = work / "network.yaml"
        side, classes = (32, 10) if args.quick else (64, 62)
        shape = shape_of(args.family)
        about = as_it_is(side, side).model_copy(update={"mean": [0.5] * 3, "std": [0.25] * 3})
        if not model.exists():
            write_network(
                model, shape, input_size=side, classes=classes, preprocessing=about,
                made_from="benchmarks/slim_search.py",
            )  # fmt: skip
        cases = list(searches(args, work, model, side, classes))
        lines = [*landings(cases), *accuracies(cases)]
        if len(args.on) > 1:
            lines += crossed(args, work, cases, side, classes)
    command = f"python benchmarks/slim_search.py {' '.join(sys.argv[1:])}".strip()
    about_text = (
        "Networks are searched with the weights they inherit and fine-tuned after, the end and both "
        "baselines alike. Accuracy is of the data's test pictures, which chose nothing."
    )
    publish("" if args.quick else args.out, "Slimming", command, about_text, lines)
    off = [case for case in cases if abs(error_of(case.record)) > EXACT]
    sys.exit(1 if off and not args.quick else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument("--on", nargs="+", default=["tflite", "onnx"])
    parser.add_argument("--family", default="efficientformer", choices=SHAPES)
    parser.add_argument("--data", default="glyphs")
    parser.add_argument("--supernet-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--work")
    parser.add_argument("--out", default="docs/results/slimming.md")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.shares, args.on = args.seeds[:1], args.shares[:1], args.on[:1]
        args.data, args.supernet_epochs, args.epochs = "digits", 1, 1
    return args


def shape_of(family: str) -> Shape:
    family_of(family)  # registers its shape
    return shape_from_json(family, SHAPES[family])


def searches(
    args: argparse.Namespace, work: Path, model: Path, side: int, classes: int
) -> Iterator[Case]:
    """Every search, or its result where an earlier run has it.

    The searches of an engine share a table, those of a seed a supernet.
    """
    supernets: dict[int, str] = {}
    for target in args.on:
        table = work / f"table-{target}.sqlite"
        whole = whole_ms(args, table, target, side, classes)
        for seed in args.seeds:
            for share in args.shares:
                out = work / f"{target}-{seed}-{share:g}"
                found = out / "slim.json"
                if not found.exists():
                    options = SlimOptions(
                        target_ms=round(share * whole, 4), on=target, seed=seed, table=table,
                        supernet_epochs=args.supernet_epochs, epochs=args.epochs, size=side,
                        finish_baselines=True, tolerance=0.5 if args.quick else EXACT,
                        weights=supernets.get(seed),
                    )  # fmt: skip
                    slim(str(model), args.data, out, options)
                supernets.setdefault(seed, str(out / "supernet.safetensors"))
                record = SlimRecord.model_validate_json(found.read_text())
                print(
                    f"{target} seed {seed} share {share:g}: {error_of(record):+.1%}",
                    file=sys.stderr,
                )
                yield Case(target, seed, share, record)


def whole_ms(args: argparse.Namespace, path: Path, target: str, side: int, classes: int) -> float:
    """What the search's whole network is predicted to take; the table is fitted for it."""
    family, shape = family_of(args.family), shape_of(args.family)
    about = About(
        args.family, dict(SHAPES[args.family]), True, classes, side, [0.5] * 3, [0.25] * 3
    )
    shape = getattr(about.build(), "shape", shape)
    with LatencyTable.open(path, family, target) as table:
        table.fit(shape, side, classes)
        table.measure(table.missing(shape, side, classes))
        return table.latency(shape, side, classes).ms


def error_of(record: SlimRecord) -> float:
    """The end's measured latency off the target, as a share."""
    return record.landings[-1].measured_ms / record.target_ms - 1


def landings(cases: list[Case]) -> list[str]:
    """What was asked for and what came."""
    lines = [
        "## What was asked for, and what it measures", "",
        "| engine | seed | asked, ms | measured, ms | off | networks measured | table's error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for case in cases:
        record = case.record
        table = record.table.error_percent
        lines.append(
            f"| {record.engine} | {case.seed} | {record.target_ms:.3g} | "
            f"{record.landings[-1].measured_ms:.3g} | {error_of(record):+.1%} | "
            f"{len(record.landings)} | {'' if table is None else f'{table:.1f} %'} |"
        )
    return [*lines, ""]


def accuracies(cases: list[Case]) -> list[str]:
    """Top-1 of the three ways after fine-tuning, mean and spread over the seeds."""
    lines = [
        "## Against uniform scaling and random search", "",
        "Top-1 on the test pictures in percent, mean over the seeds and standard deviation; in "
        "brackets the measured latency in ms. Random is the best of as many random networks as the "
        "search scored. Uniform scaling has the widest network that is not slower as predicted.", "",
        "| engine | share of the whole | search | uniform | random | search ahead of both |",
        "|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for target in dict.fromkeys(case.target for case in cases):
        for share in dict.fromkeys(case.share for case in cases):
            same = [c.record for c in cases if (c.target, c.share) == (target, share)]
            means, cells = {}, []
            for way in ("search", "uniform", "random"):
                found = [each for r in same for each in r.finished if each.way == way]
                if not found:
                    cells.append("none in the band")
                    continue
                tops = [each.test_top1 for each in found]
                times = [each.measured_ms for each in found if each.measured_ms is not None]
                means[way] = mean(tops)
                spread = f" ± {stdev(tops):.2f}" if len(tops) > 1 else ""
                cells.append(f"{mean(tops):.2f}{spread} ({mean(times):.3g})")
            others = [value for way, value in means.items() if way != "search"]
            verdict = "yes" if others and means["search"] > max(others) else "NO"
            lines.append(f"| {target} | {share:g} | {' | '.join(cells)} | {verdict} |")
    return [*lines, ""]


def crossed(
    args: argparse.Namespace, work: Path, cases: list[Case], side: int, classes: int
) -> list[str]:
    """Two engines' networks of the same seed and share, each measured on both engines."""
    first, second = args.on[:2]
    share = args.shares[len(args.shares) // 2]
    lines = [
        "## The same search on two engines", "",
        f"Ends at {share:g} of the whole network's latency on each engine, measured on both: the "
        f"median of {CROSS_RUNS} measurements, ms.", "",
        f"| seed | same network | {first}'s on {first} | {second}'s on {first} | {first}'s on "
        f"{second} | {second}'s on {second} |",
        "|---:|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    family = family_of(args.family)
    for seed in args.seeds:
        ends = {
            case.target: shape_from_json(case.record.family, case.record.end.shape)
            for case in cases
            if case.seed == seed and case.share == share
        }
        row = [str(seed), "yes" if key_of(ends[first]) == key_of(ends[second]) else "no"]
        for engine in (first, second):
            with LatencyTable.open(work / f"table-{engine}.sqlite", family, engine) as table:
                modules = [
                    table.random_network(ends[own], side, classes) for own in (first, second)
                ]
                times = [
                    [each.ms for each in table.measure_networks(modules, side)]
                    for _ in range(CROSS_RUNS)
                ]
            row += [f"{value:.3g}" for value in np.median(times, axis=0)]
        lines.append(f"| {' | '.join(row)} |")
    shapes = {
        str(shape_as_json(shape_from_json(c.record.family, c.record.end.shape))) for c in cases
    }
    return [*lines, "", f"{len(shapes)} different networks came of {len(cases)} searches.", ""]


if __name__ == "__main__":
    main()

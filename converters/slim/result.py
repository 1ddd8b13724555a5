"""Put the result's folder together: the network, its weights, the record and the page."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from converters.jobs.steps import SECONDS, Step, seconds_of
from converters.refs import network_file
from converters.slim.baselines import Other
from converters.slim.candidates import Score, as_json
from converters.slim.cost.predict import LatencyTable
from converters.slim.families.base import Subnet
from converters.slim.finish import DISTILLED, TEMPERATURE, TUNING_LR, WEIGHTS, Learning, read_result
from converters.slim.options import SlimOptions
from converters.slim.origin import Origin
from converters.slim.pictures import Pictures
from converters.slim.record import (
    CSV,
    NAME,
    Finished,
    LandingRecord,
    Network,
    SlimRecord,
    TableFacts,
)
from converters.slim.trajectory import Found
from edgevit.training.record import versions
from runtime.environment import edgevit_version

SUPERNET = "supernet.safetensors"
REPORT, LABELS, TABLE = "report.html", "labels.txt", "latency-table.sqlite"
OTHERWISE = ("epochs", "seed", "resume")  # of TrainOptions, set by those of the slimming
MES_NOTE = (
    "the constants of the Mobile Efficiency Score could not be verified; those used are in the "
    "settings"
)


@dataclass(frozen=True)
class Made:
    """All that a finished run knows. finished are the folders of `tune`, by what they are of."""

    origin: Origin
    options: SlimOptions
    model: str
    data: str
    table: LatencyTable
    steps: Path
    learning: Learning
    pictures: Pictures
    found: Found
    others: list[Other]
    measured: Mapping[Subnet, float]
    chosen: Mapping[str, Subnet]
    finished: Mapping[str, Path]
    done: Mapping[str, Step]
    source: Path


def write_result(made: Made, folder: Path, page: Callable[[SlimRecord], str] | None) -> SlimRecord:
    """Write all files into the folder, which is made; page gives report.html, None for none."""
    folder.mkdir()
    record = record_of(made)
    origin = made.origin
    network_file.write_network(
        folder / network_file.NAME,
        made.found.end.subnet.shape,
        input_size=origin.about.side,
        classes=origin.about.classes,
        preprocessing=origin.source.preprocessing,
        made_from=f"{made.model}, slimmed to {made.options.target_ms:g} ms on {record.engine}",
    )
    shutil.copyfile(made.finished["search"] / WEIGHTS, folder / WEIGHTS)
    (folder / LABELS).write_text("".join(f"{label}\n" for label in record.labels), encoding="utf-8")
    (folder / NAME).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / CSV).write_text(record.csv(), encoding="utf-8")
    if origin.about.supernet:
        shutil.copyfile(made.source / WEIGHTS, folder / SUPERNET)
    if made.options.table is None:
        _copy_table(made.table.store.path, folder / TABLE)
    if page is not None:
        (folder / REPORT).write_text(page(record), encoding="utf-8")
    return record


def record_of(made: Made) -> SlimRecord:
    """slim.json's content."""
    options, origin, learning = made.options, made.origin, made.learning
    about = origin.about
    setup = made.table.setup
    notes = [*origin.notes]
    if options.objective == "mes":
        notes.append(MES_NOTE)
    settings = options.identity() | {
        "tuning_lr": TUNING_LR, "teacher_weight": DISTILLED, "teacher_temperature": TEMPERATURE,
        "training": {
            name: value
            for name, value in vars(learning.options).items()
            if isinstance(value, int | float | str) and name not in OTHERWISE
        },
    }  # fmt: skip
    return SlimRecord(
        edgevit_version=edgevit_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=made.model,
        family=about.family,
        weights=origin.weights,
        weights_sha256=origin.weights_sha256,
        source="supernet" if about.supernet else "network",
        data=made.data,
        labels=list(learning.train.classes),
        pictures={
            "train": len(learning.train), "held_out": len(learning.held),
            "settle": len(made.pictures.settle), "test": len(learning.test),
        },
        side=about.side,
        target_ms=options.target_ms,
        target_size_m=options.target_size_m,
        objective=options.objective,
        engine=f"{setup.engine} {setup.engine_version}",
        device=options.where.device,
        threads=options.threads,
        settings=settings,
        table=_table_facts(made),
        networks=_networks(made),
        landings=[
            LandingRecord(aim_ms=each.aim, predicted_ms=each.predicted, measured_ms=each.measured)
            for each in made.found.landings
        ],
        evaluated=made.found.evaluated,
        finished=[
            Finished(way=way, measured_ms=made.measured.get(made.chosen[way]), **read_result(path))
            for way, path in made.finished.items()
        ],
        notes=notes,
        versions=versions(),
        machine=json.loads(json.dumps(asdict(setup.machine))),
        timings_s=_timings(made),
    )  # fmt: skip


def _networks(made: Made) -> list[Network]:
    path = made.found.path
    found = [
        _network(made, "search", step, point.action or "the whole network", point.subnet, point.ms,
                 point.score, point.tried)
        for step, point in enumerate(path)
    ]  # fmt: skip
    counts = {"uniform": 0, "random": 0}
    for other in made.others:
        way = "random" if other.factor is None else "uniform"
        counts[way] += 1
        action = "drawn" if other.factor is None else f"all widths times {other.factor:.3g}"
        found.append(
            _network(made, way, counts[way], action, other.subnet, other.ms, other.score, 1)
        )
    return found


def _network(
    made: Made,
    way: str,
    step: int,
    action: str,
    subnet: Subnet,
    ms: float,
    score: Score,
    tried: int,
) -> Network:
    told: dict[str, Any] = as_json(subnet)
    return Network(
        way=way, step=step, action=action, predicted_ms=ms, measured_ms=made.measured.get(subnet),
        top1=score.top1, loss=score.loss, params=score.params, tried=tried,
        shape=told["shape"], blocks=told["blocks"],
    )  # fmt: skip


def _table_facts(made: Made) -> TableFacts:
    about, table = made.origin.about, made.table
    fit = table.correction(about.side, about.classes)
    return TableFacts(
        setup=str(table.setup),
        parts=len(table.store.entries(table.setup)),
        fit_intercept_ms=None if fit is None else fit.a_ms,
        fit_slope=None if fit is None else fit.b,
        fit_networks=0 if fit is None else fit.networks,
        error_percent=None if fit is None else 100 * fit.error,
        file=TABLE if made.options.table is None else None,
    )


def _timings(made: Made) -> dict[str, float]:
    """Seconds of the steps, over all continuations; that of the search is all scoring together."""
    times = {name: seconds_of(step, made.steps) for name, step in made.done.items()}
    scored = made.steps.glob(f"score-*/{SECONDS}")
    return times | {"scoring": sum(float(path.read_text()) for path in scored)}


def _copy_table(source: Path, goal: Path) -> None:
    """The table as one file, also while what was written last stands beside it."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(goal)) as new:
        old.backup(new)

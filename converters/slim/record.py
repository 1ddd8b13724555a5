"""slim.json: all that it takes to repeat a slimming, and what came of it. Times in ms."""

from __future__ import annotations

import csv
import io
from typing import Any, Literal

from pydantic import Field

from runtime.manifest import Record

NAME = "slim.json"
KIND = "edgevit-slim"
CSV = "trajectory.csv"


class TableFacts(Record):
    """The latency table behind the predictions."""

    setup: str
    parts: int
    fit_intercept_ms: float | None = None
    fit_slope: float | None = None
    fit_networks: int = 0
    error_percent: float | None = Field(
        default=None, description="Mean absolute error on networks left out of the fit, per cent"
    )
    file: str | None = Field(default=None, description="Its name in the result, unless --table")


class Network(Record):
    """A network that was scored; top-1 in per cent and loss in nats of the held-out pictures.

    measured_ms is None where it was not measured as a whole, finished where it was not fine-tuned.
    """

    way: Literal["search", "uniform", "random"]
    step: int
    action: str
    predicted_ms: float
    measured_ms: float | None = None
    top1: float
    loss: float
    params: int
    tried: int = 0
    shape: dict[str, Any]
    blocks: list[list[int]]


class LandingRecord(Record):
    """An end that was measured."""

    aim_ms: float
    predicted_ms: float
    measured_ms: float


class Finished(Record):
    """A network after fine-tuning; top-1 in per cent, held out and of the data's test pictures."""

    way: Literal["search", "uniform", "random"]
    measured_ms: float | None
    held_top1: float
    held_loss: float
    test_top1: float
    test_top5: float
    test_loss: float
    epoch: int
    seconds: float


class SlimRecord(Record):
    """slim.json."""

    schema_version: Literal[1] = 1
    kind: Literal["edgevit-slim"] = "edgevit-slim"
    edgevit_version: str
    created: str
    model: str
    family: str
    weights: str
    weights_sha256: str
    source: str = Field(description="supernet, or the trained network itself")
    data: str
    labels: list[str]
    pictures: dict[str, int] = Field(description="How many: train, held_out, settle, test")
    side: int
    target_ms: float
    target_size_m: float | None
    objective: str
    engine: str
    device: str
    threads: int
    settings: dict[str, Any]
    table: TableFacts
    networks: list[Network]
    landings: list[LandingRecord]
    evaluated: int
    finished: list[Finished]
    notes: list[str]
    versions: dict[str, str]
    machine: dict[str, Any]
    timings_s: dict[str, float]

    @property
    def path(self) -> list[Network]:
        """The way of the search, the whole network first."""
        return [network for network in self.networks if network.way == "search"]

    @property
    def end(self) -> Network:
        """Where the search ended."""
        return self.path[-1]

    @property
    def result(self) -> Finished:
        """The end after fine-tuning."""
        return next(each for each in self.finished if each.way == "search")

    def csv(self) -> str:
        """trajectory.csv: a line for each network; what was not measured is left empty."""
        names = ["way", "step", "action", "predicted_ms", "measured_ms", "top1", "loss", "params",
                 "tried", "shape", "blocks"]  # fmt: skip
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for network in self.networks:
            row = network.model_dump()
            row["shape"] = " ".join(f"{k}={_flat(v)}" for k, v in network.shape.items())
            row["blocks"] = "|".join(_flat(stage) for stage in network.blocks)
            for name in ("predicted_ms", "measured_ms", "loss"):
                row[name] = "" if row[name] is None else f"{row[name]:.6g}"
            row["top1"] = f"{network.top1:.3f}"
            writer.writerow(row)
        return text.getvalue()


def _flat(value: Any) -> str:
    return "-".join(_flat(each) for each in value) if isinstance(value, list) else str(value)

"""What a person may ask of a slimming."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.slim.errors import SlimError

if TYPE_CHECKING:
    from runtime.devices.file import AddressOptions

OBJECTIVES = ("latency", "mes")
_LATENCY = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s)", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([KMG]?)", re.IGNORECASE)
_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_MILLIONS = {"": 1e-6, "k": 1e-3, "m": 1.0, "g": 1e3}


@dataclass(frozen=True)
class Where:
    """The device to measure on: `local`, a name of devices.yaml, or HOST:PORT."""

    device: str = "local"
    file: Path | None = None
    options: AddressOptions | None = None


@dataclass(frozen=True)
class SlimOptions:
    """What `edgevit slim` takes. Two runs with the same ones, apart from those of FREE, are one.

    target_ms and target_size_m (millions of parameters, for the objective "mes"); on is a target of
    `edgevit convert`; threads are the engine's. weights are of a trained network where supernet is
    False, else of a supernet that an earlier slimming trained. supernet_epochs train what is
    slimmed, epochs fine-tune the result, and with finish_baselines the baselines' best too. size is
    the input's side in pixels. tolerance is how far off the target the measured end may be, as a
    share. table is a latency table's file, None for one of the result's own; networks are the
    random networks that it is fitted on and its error measured with, 0 for no fit. jobs are the
    processes that score subnets, ray the address of a Ray cluster for it. mes_* are the constants
    of the Mobile Efficiency Score, which could not be verified.
    """

    target_ms: float
    on: str
    weights: str | None = None
    supernet: bool = True
    objective: str = "latency"
    target_size_m: float | None = None
    supernet_epochs: int = 30
    epochs: int = 30
    size: int | None = None
    threads: int = 1
    seed: int = 0
    tolerance: float = 0.05
    baselines: bool = True
    finish_baselines: bool = False
    networks: int = 8
    mes_alpha_size: float = 0.5
    mes_alpha_latency: float = 1.0
    mes_unit_size_m: float = 3.0
    mes_unit_latency_ms: float = 1.0
    where: Where = field(default_factory=Where)
    table: Path | None = None
    jobs: int = 1
    ray: str | None = None
    force: bool = False

    def check(self) -> None:
        """Raise SlimError for a value that makes no sense."""
        if not (math.isfinite(self.target_ms) and self.target_ms > 0):
            raise SlimError(f"the target latency must be above 0 ms, got {self.target_ms:g}")
        if self.weights is None and not self.supernet:
            raise SlimError(
                "--no-supernet slims a trained network: give its checkpoint with --weights"
            )
        if self.objective not in OBJECTIVES:
            raise SlimError(
                f"unknown objective '{self.objective}', expected {' or '.join(OBJECTIVES)}"
            )
        if self.objective == "mes" and self.target_size_m is None:
            raise SlimError(
                "the objective mes reaches a latency and a size: give --target-size too, as in 1.5M"
            )
        if self.objective != "mes" and self.target_size_m is not None:
            raise SlimError("a target size goes with --objective mes only")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bound = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise SlimError(f"{name.replace('_', ' ')} must be {bound}, got {value:g}")

    def identity(self) -> dict[str, Any]:
        """What a continuation must share, as JSON has it."""
        told = {name: value for name, value in vars(self).items() if name not in FREE}
        return told | {"device": self.where.device}


# May differ between a run and its continuation: they do not change what comes out. The weights do,
# by their digest, and the device by its name.
FREE = frozenset({"where", "table", "jobs", "ray", "force", "weights"})

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("supernet_epochs", 1, math.inf),
    ("epochs", 1, math.inf),
    ("size", 1, math.inf),
    ("threads", 1, math.inf),
    ("seed", 0, 2**32 - 1),
    ("tolerance", 0.001, 1),
    ("networks", 0, math.inf),
    ("jobs", 1, math.inf),
)


def latency_ms(text: str) -> float:
    """Milliseconds from '2ms', '1.5 ms', '800us' or '0.02s'. Raises SlimError."""
    return _number(text, _LATENCY, _MS, "a latency", "2ms, 800us or 0.02s")


def size_m(text: str) -> float:
    """Millions of parameters from '1.5M', '900K' or '1500000'. Raises SlimError."""
    return _number(text, _SIZE, _MILLIONS, "a size in parameters", "1.5M or 900K")


def _number(
    text: str, pattern: re.Pattern[str], units: dict[str, float], what: str, examples: str
) -> float:
    found = pattern.fullmatch(text.strip())
    if found is None:
        raise SlimError(f"'{text}' is not {what}; expected for example {examples}")
    value = float(found[1]) * units[found[2].lower()]
    if not (math.isfinite(value) and value > 0):
        raise SlimError(f"{what} must be above 0, got '{text}'")
    return value

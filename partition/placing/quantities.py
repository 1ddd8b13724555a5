"""Amounts with their units, as a person writes them: 512MiB, 2 Mbit/s, 2.5 GMAC/s, 40 J, 50 ms.

A unit's letters are read in their case where it matters: mJ and MJ are nine powers of ten apart. A
plain number is in the base unit. Two letters before B mean powers of 1024 (MiB), one of 1000 (MB).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SMALL = {"": 1.0, "p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6}

BYTES = {f"{prefix}B": value for prefix, value in _DECIMAL.items()} | {
    f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", start=1)
}
BITS_A_SECOND = {
    f"{prefix}{unit}": value
    for prefix, value in _DECIMAL.items()
    for unit in ("bit/s", "bps", "bit")
} | {f"{prefix}B/s": 8 * value for prefix, value in _DECIMAL.items()}
MACS_A_SECOND = {
    f"{prefix}{unit}": value for prefix, value in _DECIMAL.items() for unit in ("MAC/s", "MACs/s")
}
JOULES = {f"{prefix}J": value for prefix, value in _SMALL.items()} | {"Wh": 3600.0, "mWh": 3.6}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}

_WRITTEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*(\S*)\s*")


def amount(value: Any, units: Mapping[str, float], example: str) -> float:
    """The number in the base unit, above 0. Raises ValueError that shows how to write it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected an amount like {example}, got {value!r}")
    if isinstance(value, str):
        found = _WRITTEN.fullmatch(value)
        if found is None:
            raise ValueError(f"expected an amount like {example}, got '{value}'")
        unit = found[2]
        if unit and unit not in units:
            raise ValueError(
                f"expected an amount like {example}, got '{value}': the unit '{unit}' is none of "
                f"{', '.join(units)}"
            )
        value = float(found[1]) * (units[unit] if unit else 1.0)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected an amount above 0 like {example}, got {value}")
    return float(value)


def _validator(units: Mapping[str, float], example: str) -> BeforeValidator:
    return BeforeValidator(lambda value: amount(value, units, example))


def _whole_bytes(value: Any) -> int:
    return math.floor(amount(value, BYTES, "512MiB"))


Bytes = Annotated[int, BeforeValidator(_whole_bytes)]
BitRate = Annotated[float, _validator(BITS_A_SECOND, "2 Mbit/s")]
MacRate = Annotated[float, _validator(MACS_A_SECOND, "2.5 GMAC/s")]
Energy = Annotated[float, _validator(JOULES, "40 J")]
Duration = Annotated[float, _validator(SECONDS, "50 ms")]


def shown_bytes(size: float) -> str:
    """'9.55 MiB', for people."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(size) >= 1024**power:
            return f"{size / 1024**power:.2f} {unit}"
    return f"{size:.0f} B"


def shown_seconds(seconds: float) -> str:
    """'18.6 ms', for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

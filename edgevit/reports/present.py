"""Names and numbers as a reader sees them; shared by the page, the table and the verdict.

A number that was not measured is an en dash, never zero and never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from runtime.manifest import Delegation, Verification
from runtime.run_record import Measurement, RunRecord

ABSENT = "–"

ENGINE_NAMES = {
    "litert": "LiteRT",
    "onnxruntime": "ONNX Runtime",
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
}


def engine_name(engine: str) -> str:
    """The engine's name as its makers write it."""
    return ENGINE_NAMES.get(engine.lower(), engine)


def decimals_for(values: Iterable[float]) -> int:
    """How many decimals a column of milliseconds needs: three figures of its smallest number."""
    smallest = min((v for v in values if v > 0), default=1.0)
    return 3 if smallest < 1 else 2 if smallest < 10 else 1


def number(value: float | None, decimals: int) -> str:
    """A number with a set count of decimals, or the en dash."""
    return ABSENT if value is None else f"{value:.{decimals}f}"


def milliseconds(value: float) -> str:
    """One time for running text, in ms, with three figures."""
    return f"{value:.{decimals_for([value])}f} ms"


def megabytes(size: int | None) -> str:
    """Bytes as MB (10^6) with one decimal."""
    return ABSENT if size is None else f"{size / 1e6:.1f}"


def scientific(value: float) -> str:
    """0.0000016 as 1.6e-6: two figures, no padded exponent; plain from 0.01 on."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def fraction(value: float) -> str:
    """A fraction as per cent; 0.9996 does not become 100 %."""
    percent = value * 100
    return f"{percent:.0f} %" if percent == round(percent) else f"{min(percent, 99.9):.1f} %"


def plural(count: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def date(created: str) -> str:
    """An ISO 8601 time as 21 November 2026, 01:14 UTC; anything else as it came."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = when.tzname() or ""
    return f"{when.day} {when:%B %Y, %H:%M} {zone}".strip()


def place_of(record: RunRecord) -> str:
    """What its owner calls the device of a record, else what the device is."""
    return record.environment.name or record.environment.device


def device_of(record: RunRecord) -> str:
    """The device of a record in full: its name, where it has one, and what it is."""
    env = record.environment
    return f"{env.name} ({env.device})" if env.name else env.device


def record_names(records: Sequence[RunRecord]) -> list[str]:
    """One name for each record: its device, then its threads or models where devices coincide."""
    devices = [place_of(r) for r in records]
    threads = [plural(r.threads, "thread") for r in records]
    models = [listing(models_of(r) or [ABSENT]) for r in records]
    for more in ([""] * len(records), threads, models):
        names = [f"{d}, {m}" if m else d for d, m in zip(devices, more, strict=True)]
        if len(set(names)) == len(records):
            return names
    return [f"{d}, run {i + 1}" for i, d in enumerate(devices)]


def labels(record: RunRecord) -> list[str]:
    """One name for each measurement of a record: its label; where labels coincide, the file joins
    them, then the id."""
    own = [m.label for m in record.measurements]
    for extra in ([m.file for m in record.measurements], [m.id for m in record.measurements]):
        if len(set(own)) < len(own):
            own = [f"{n} ({e})" if own.count(n) > 1 else n for n, e in zip(own, extra, strict=True)]
    return own


def page_names(records: Sequence[RunRecord]) -> list[list[str]]:
    """names[r][m], unique over all records: with several, the label and the device."""
    if len(records) == 1:
        return [labels(records[0])]
    places = record_names(records)
    return [[f"{n} · {p}" for n in labels(r)] for r, p in zip(records, places, strict=True)]


MarkKind = Literal["passed", "failed", "simulated", "not_executed", "unverified"]


@dataclass(frozen=True)
class Mark:
    """What a reader may conclude about an artefact's numbers. Only `passed` carries a tick."""

    kind: MarkKind
    glyph: str
    text: str
    detail: str = ""


def verification_mark(m: Measurement) -> Mark:
    """The mark of one artefact; an artefact that its own engine never ran has no tick."""
    v = m.verification
    if v is None:
        return Mark("unverified", ABSENT, "not checked", "not compared with torch")
    if v.status == "not_executed":
        return Mark("not_executed", "○", "not run", v.reason or f"not executed by {v.prover}")
    score = _score(v)
    detail = _detail(v, f"{m.engine} {m.engine_version}")
    if v.status == "failed":
        return Mark("failed", "✕", f"FAILED {score}".strip(), detail)
    if "reference" in v.prover.lower():  # an interpreter of the format, not the engine itself
        return Mark("simulated", "≈", f"simulated {score}".strip(), detail)
    return Mark("passed", "✓", score or "passed", detail)


def _score(v: Verification) -> str:
    if v.error_over_spread is not None:
        return scientific(v.error_over_spread)
    return "" if v.cosine_centred is None else f"cos {v.cosine_centred:.5f}"


def _detail(v: Verification, engine: str) -> str:
    if v.status == "failed" and v.reason:
        return v.reason
    parts = []
    if v.cosine_centred is not None and (v.error_over_spread is None or v.error_over_spread > 1e-4):
        parts.append(f"cos {v.cosine_centred:.5f}")
    if v.top1_agreement is not None:
        parts.append(f"top-1 {fraction(v.top1_agreement)}")
    if v.inputs:
        parts.append(plural(v.inputs, "input"))
    if v.prover != engine:
        parts.append(f"by {v.prover}")
    return " · ".join(parts)


def outside_ops(delegation: Delegation, limit: int = 5) -> str:
    """The ops outside the delegate, most frequent first: layer_norm ×9, softmax ×2."""
    ops = sorted(delegation.outside.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} ×{count}" for name, count in ops[:limit]]
    if len(ops) > limit:
        shown.append(f"{plural(len(ops) - limit, 'more kind')}")
    return ", ".join(shown)


def models_of(record: RunRecord) -> list[str]:
    """The models of a record in order of appearance; absent where no measurement names one."""
    return list(dict.fromkeys(m.model for m in record.measurements if m.model))


def memory_growth(m: Measurement) -> int:
    """Bytes that loading and running added to the process at its peak."""
    return m.memory.peak - m.memory.before_load

"""What the page shows, as plain rows of text: the template only lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgevit.reports.charts import colours
from edgevit.reports.present import (
    ABSENT,
    Mark,
    date,
    decimals_for,
    device_of,
    engine_name,
    labels,
    megabytes,
    memory_growth,
    models_of,
    number,
    outside_ops,
    page_names,
    plural,
    record_names,
    verification_mark,
)
from edgevit.reports.ratios import failed, fastest, ratio_of, times
from edgevit.reports.verdict import Absent, Finding, findings
from runtime.run_record import Environment, Measurement, OpTime, RunRecord

TOP_OPS = 15


@dataclass(frozen=True)
class Row:
    """One artefact in the comparison table; every number is ready to print."""

    name: str
    colour: str
    engine: str
    precision: str
    size: str
    p50: str
    p90: str
    p95: str
    p99: str
    least: str
    mean: str
    std: str
    runs: int
    ratio: str
    spread: str
    across: str
    load: str
    first: str
    memory: str
    delegation: str
    outside: str
    mark: Mark
    winner: bool
    wrong: bool


@dataclass(frozen=True)
class OpRow:
    """One op; `width` is its bar, in per cent of the widest."""

    name: str
    type: str
    count: int
    ms: str
    share: str
    width: str
    delegate: str


@dataclass(frozen=True)
class Ops:
    """The ops of one measurement, or why there are none."""

    name: str
    colour: str
    top: list[OpRow] = field(default_factory=list)
    rest: list[OpRow] = field(default_factory=list)
    rest_share: str = ""
    total: str = ""
    note: str = ""


@dataclass(frozen=True)
class RecordView:
    """One record: its part of the comparison table and of the lists below."""

    name: str
    subtitle: str
    rows: list[Row]
    not_measured: list[tuple[str, str, str]]
    method: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    subtitle: str
    findings: list[Finding]
    records: list[RecordView]
    ops: list[Ops]
    environment: list[tuple[str, list[str]]]

    @property
    def several(self) -> bool:
        """True where the page compares records."""
        return len(self.records) > 1


def build_page(
    records: Sequence[RunRecord], title: str | None = None, absent: Sequence[Absent] = ()
) -> Page:
    """The page of one or more records, and of the devices that gave none."""
    names = page_names(records)
    places = record_names(records)
    tints = colours(records)
    best = fastest([m for r in records for m in r.measurements])
    views = [
        RecordView(
            name=place,
            subtitle=_subtitle(record),
            rows=_rows(record, tint, best, records),
            not_measured=[(n.label, n.file, n.reason) for n in record.not_measured],
            method=[(key.replace("_", " "), _method_value(v)) for key, v in record.method.items()],
            notes=list(record.notes),
        )
        for record, place, tint in zip(records, places, tints, strict=True)
    ]
    return Page(
        title=title or _title(records),
        subtitle=views[0].subtitle
        if len(records) == 1
        else f"{len(records)} records: {'; '.join(places)}",
        findings=findings(records, absent),
        records=views,
        ops=[
            _ops(m, name, shade)
            for record, own, tint in zip(records, names, tints, strict=True)
            for m, name, shade in zip(record.measurements, own, tint, strict=True)
        ],
        environment=_environment(records),
    )


def _title(records: Sequence[RunRecord]) -> str:
    models = list(dict.fromkeys(m for r in records for m in models_of(r)))
    devices = list(dict.fromkeys(device_of(r) for r in records))
    what = ", ".join(models) if models else "Profile"
    where = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
    return f"{what} on {where}"


def _subtitle(record: RunRecord) -> str:
    threads = sorted({m.threads for m in record.measurements} or {record.threads})
    counts = " and ".join(str(t) for t in threads)
    shapes = list(dict.fromkeys("×".join(map(str, m.input_shape)) for m in record.measurements))
    parts = [
        device_of(record),
        plural(threads[0], "thread") if len(threads) == 1 else f"{counts} threads",
        *(["input " + shapes[0]] if len(shapes) == 1 else []),
        date(record.created),
    ]
    return " · ".join(parts)


def _method_value(value: str | int | float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _rows(
    record: RunRecord,
    tint: Sequence[str],
    best: Measurement | None,
    records: Sequence[RunRecord],
) -> list[Row]:
    everything = [m for r in records for m in r.measurements]
    times_of = decimals_for(m.latency.min for m in everything)
    load = decimals_for(m.load_ms for m in everything)
    first = decimals_for(m.first_run_ms for m in everything)
    names = labels(record)
    items = record.measurements
    winner = fastest(items)
    order = sorted(range(len(names)), key=lambda i: (failed(items[i]), items[i].latency.p50))
    rows = []
    for i in order:
        m = items[i]
        s = m.latency
        ratio = ratio_of(record, m, winner) if winner else None
        d = m.delegation
        rows.append(
            Row(
                name=names[i],
                colour=tint[i],
                engine=f"{engine_name(m.engine)} {m.engine_version}",
                precision=m.precision or ABSENT,
                size=megabytes(m.size_bytes),
                p50=number(s.p50, times_of),
                p90=number(s.p90, times_of),
                p95=number(s.p95, times_of),
                p99=number(s.p99, times_of),
                least=number(s.min, times_of),
                mean=number(s.mean, times_of),
                std=number(s.std, times_of),
                runs=s.n,
                ratio=ABSENT if ratio is None else times(ratio.value),
                spread="" if m is winner or ratio is None else ratio.spread or "no spread",
                across=ABSENT if best is None else times(s.p50 / best.latency.p50),
                load=number(m.load_ms, load),
                first=number(m.first_run_ms, first),
                memory=megabytes(memory_growth(m)),
                delegation=ABSENT if d is None else str(d.partitions),
                outside=outside_ops(d, 3) if d and d.outside else "",
                mark=verification_mark(m),
                winner=m is winner,
                wrong=failed(m),
            )
        )
    return rows


def _ops(m: Measurement, name: str, shade: str) -> Ops:
    if not m.ops:
        return Ops(name, shade, note=m.ops_note or "The engine gave no per-op times.")
    ops = sorted(m.ops, key=lambda op: -op.ms)
    widest = max(ops[0].share, 1e-12)
    decimals = 3 if ops[0].ms < 100 else 2
    cut = TOP_OPS if len(ops) > TOP_OPS + 3 else len(ops)
    rows = [_op_row(op, widest, decimals) for op in ops]
    return Ops(
        name,
        shade,
        top=rows[:cut],
        rest=rows[cut:],
        rest_share=f"{sum(op.share for op in ops[cut:]) * 100:.1f} %",
        total=f"{number(sum(op.ms for op in ops), 2)} ms in {plural(len(ops), 'op')}",
        note=m.ops_note or "",
    )


def _op_row(op: OpTime, widest: float, decimals: int) -> OpRow:
    return OpRow(
        name=op.name,
        type="" if op.type.lower() in op.name.lower() else op.type,
        count=op.count,
        ms=number(op.ms, decimals),
        share=f"{op.share * 100:.1f}",
        width=f"{max(0.0, min(100.0, op.share / widest * 100)):.1f}",
        delegate=(op.delegate or ABSENT).removesuffix("ExecutionProvider"),
    )


def _environment(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """One line per fact, one column per record; a fact that no device told is left out."""
    columns = [dict(_facts(r)) for r in records]
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [(key, [column.get(key) or ABSENT for column in columns]) for key in keys]
    return [(key, values) for key, values in lines if set(values) != {ABSENT}]


def _facts(record: RunRecord) -> Iterator[tuple[str, str | None]]:
    yield from environment_facts(record.environment)
    yield "edgevit", record.edgevit_version
    yield "measured", date(record.created)
    yield "threads", str(record.threads)
    yield "runs asked for", str(record.runs)


def environment_facts(env: Environment) -> Iterator[tuple[str, str | None]]:
    """What a machine's system tells, name and value; None is what it does not tell."""
    yield "name", env.name
    yield "device", env.device
    yield "host name", env.hostname
    yield "system", f"{env.system}, {env.machine}"
    yield "CPU", env.cpu_model
    cores = [
        plural(env.cores_physical, "physical core") if env.cores_physical else "",
        f"{env.cores_logical} logical" if env.cores_logical else "",
    ]
    yield "cores", ", ".join(c for c in cores if c) or None
    yield "SIMD", " ".join(env.cpu_flags) or None
    yield "CPU governor", env.governor
    yield "CPU frequency", None if env.frequency_mhz is None else f"{env.frequency_mhz:.0f} MHz"
    yield "temperature", None if env.temperature_c is None else f"{env.temperature_c:.1f} °C"
    yield "memory", None if env.memory_total is None else f"{env.memory_total / 1e9:.1f} GB"
    yield (
        "load average at the start",
        None if env.load_average is None else f"{env.load_average:.2f}",
    )
    yield "Python", env.python

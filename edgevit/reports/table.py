"""The comparison as a terminal table that can be read at 100 columns, and at 80."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgevit.reports.page import Row, build_page
from edgevit.reports.verdict import Absent
from runtime.run_record import RunRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDE = 118
"""From this many columns on, spreads and start-up times stand beside instead of below."""
LONGEST_NAME = 48
"""Longer names lose their middle in the table; the findings below it say them in full."""

STYLES = {"good": "green", "info": "", "warn": "yellow", "bad": "bold red"}
GLYPHS = {"good": "✓", "info": "○", "warn": "!", "bad": "✕"}
MARK_STYLES = {
    "passed": "green",
    "failed": "bold red",
    "simulated": "yellow",
    "not_executed": "yellow",
    "unverified": "yellow",
}


def print_table(
    records: Sequence[RunRecord], console: Console, absent: Sequence[Absent] = ()
) -> None:
    """Print a table per record, then what was not measured, the warnings, the verdict last."""
    page = build_page(records, absent=absent)
    wide = console.width >= WIDE
    console.print(text_of(page.title, "bold"))
    for record in page.records:
        if len(page.records) > 1 or record.rows:
            console.print(text_of(record.subtitle, "dim"))
        if record.rows:
            console.print(_table(record.rows, wide))
    verdict = [f for f in page.findings if f.topic == "speed" and f.level != "bad"]
    rest = [f for f in page.findings if f not in verdict]
    quiet = [f for f in rest if f.topic == "absent"]
    for finding in [*quiet, *(f for f in reversed(rest) if f not in quiet)]:
        line = f"{GLYPHS[finding.level]} {finding.text}"
        console.print(text_of(line, STYLES[finding.level]), highlight=False)
    for finding in verdict:
        console.print(text_of(finding.text, "bold"), highlight=False)


def _table(rows: Sequence[Row], wide: bool) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if wide else 0, 0, 0))
    table.add_column("artefact", overflow="fold", min_width=12)
    if wide:
        table.add_column("engine", overflow="fold")
        table.add_column("prec", no_wrap=True)
    else:
        table.add_column("engine", overflow="fold")
    for header in ("p50 ms", "p90"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("× fastest", justify="right", no_wrap=True)
    for header in ("load", "first") if wide else ("load\nfirst",):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("peak\nMB", justify="right", no_wrap=True)
    table.add_column("verified", no_wrap=True)
    table.add_column("parts", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, wide), style="red" if row.wrong else None)
    return table


def _cells(row: Row, wide: bool) -> list[Text]:
    spread = f"({row.spread})" if row.spread and row.spread[0].isdigit() else row.spread
    engine = row.engine.rsplit(" ", 1)[0]
    verified = text_of(f"{row.mark.glyph} {row.mark.text}", MARK_STYLES[row.mark.kind])
    name = text_of(_short(row.name), "bold" if row.winner else "")
    p50 = text_of(row.p50, "bold")
    if wide:
        middle = [text_of(f"{row.ratio} {spread}".strip()), text_of(row.load), text_of(row.first)]
        head = [name, text_of(engine), text_of(row.precision)]
    else:
        middle = [text_of(f"{row.ratio}\n{spread}".strip()), text_of(f"{row.load}\n{row.first}")]
        head = [name, text_of(f"{engine}\n{row.precision}")]
    tail = [text_of(row.memory), verified, text_of(row.delegation)]
    return [*head, p50, text_of(row.p90), *middle, *tail]


def _short(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    half = LONGEST_NAME // 2
    return f"{name[: half - 1].rstrip()} … {name[-half:].lstrip()}"


def text_of(text: str, style: str = "") -> Text:
    """Text as it stands: no rich markup in it is obeyed, and no terminal control sequence."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in text), style=style)

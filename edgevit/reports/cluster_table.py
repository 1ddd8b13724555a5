"""A bench of a cluster as terminal tables, and as rows for a CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from edgevit.reports.cluster_page import ClusterPage, build_cluster_page
from edgevit.reports.table import GLYPHS, STYLES, text_of
from partition.cluster.bench_record import ClusterRun

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_cluster(run: ClusterRun, console: Console) -> None:
    """Where the time goes, the workers, what to be careful about, the verdict last."""
    page = build_cluster_page(run)
    console.print(text_of(page.title, "bold"))
    console.print(text_of(page.subtitle, "dim"))
    for group in page.groups:
        console.print(text_of(f"\n{group.kind} answers: {group.count}, {group.per_s} a second"))
        table = _table("stage", "mean ms", "share %", "p50", "p90", "p95", "p99")
        for row in [*group.stages, group.total]:
            cells = (row.name, row.mean, row.share, row.p50, row.p90, row.p95, row.p99)
            table.add_row(*map(text_of, cells), style="bold" if row is group.total else None)
        console.print(table)
    console.print(_workers(page))
    verdict = [f for f in page.findings if f.topic == "speed" and f.level != "bad"]
    for finding in reversed([f for f in page.findings if f not in verdict]):
        line = f"{GLYPHS[finding.level]} {finding.text}"
        console.print(text_of(line, STYLES[finding.level]), highlight=False)
    for finding in verdict:
        console.print(text_of(finding.text, "bold"), highlight=False)


def cluster_csv(run: ClusterRun) -> str:
    """One row an answer: when it was asked for, its kind, end to end, its stages, who was last."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(
        ["index", "at_ms", "kind", "ms", *(f"{stage}_ms" for stage in run.stages), "straggler",
         "missing"]
    )  # fmt: skip
    for index, sample in enumerate(run.samples):
        stages = [repr(value) for value in sample.stages_ms]
        writer.writerow(
            [index, repr(sample.at_ms), sample.kind, repr(sample.ms), *stages, sample.straggler,
             " ".join(sample.missing)]
        )  # fmt: skip
    return out.getvalue()


def _workers(page: ClusterPage) -> Table:
    table = _table("worker", "was last", "share %", "its p50 ms", "at the end")
    for row in page.workers:
        cells = (row.name, str(row.straggler), row.share, row.p50, row.state)
        table.add_row(*map(text_of, cells), style="bold" if row.worst else None)
    return table


def _table(first: str, *titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table

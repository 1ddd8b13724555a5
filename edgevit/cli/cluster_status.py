"""edgevit cluster status: how the coordinator, the devices and their sub-models are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgevit.cli.app import AsJson
from edgevit.cli.cluster import cluster_app
from edgevit.cli.cluster_options import (
    Coordinator,
    PlanFolder,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    Where,
)
from edgevit.cli.device_options import quiet_grpc

if TYPE_CHECKING:
    from partition.cluster.status import ClusterStatus, DeviceStatus, WorkerStatus

STYLES = {"ready": "green", "out": "yellow", "unreachable": "red"}
COORDINATOR_STYLES = {"ready": "green", "degraded": "yellow", "down": "red"}


@cluster_app.command("status")
def status(
    plan: PlanFolder,
    coordinator: Coordinator = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Show every device and sub-model with its state; exit code 1 where anything is missing."""
    quiet_grpc()
    from edgevit.cli.output import print_json
    from partition.cluster.status import survey

    where = Where(coordinator, tls_ca, tls_cert, tls_key, token_file)
    running = where.running(plan)
    found = survey(running)
    if as_json:
        print_json(_as_json(plan, found))
    else:
        _show(plan, found, where.words())
    if not found.well:
        raise typer.Exit(1)


def _as_json(plan: Path, found: ClusterStatus) -> dict[str, Any]:
    from dataclasses import asdict

    return {"plan": str(plan), "well": found.well, **asdict(found)}


def _show(plan: Path, found: ClusterStatus, where: list[str]) -> None:
    from rich import box
    from rich.table import Table

    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("device", "address", "sub-model", "state"):
        table.add_column(title, overflow="fold")
    for title in ("p50", "°C", "last seen"):
        table.add_column(title, justify="right", no_wrap=True)
    for device in found.devices:
        for number, worker in enumerate(device.workers):
            table.add_row(*_cells(device, worker, first=number == 0))
    console.print(table)
    for line in _reasons(found):
        console.print(line, markup=False, soft_wrap=True)
    coordinator = found.coordinator
    digest = f", plan {coordinator.plan_digest[:12]}" if coordinator.plan_digest else ""
    place = f" at {coordinator.address}" if coordinator.address else ""
    state = f"[{COORDINATOR_STYLES[coordinator.state]}]{coordinator.state}[/]"
    console.print(f"Coordinator{plain(place)}{plain(digest)}: {state}", soft_wrap=True)
    if coordinator.missing:
        told = f"  without {', '.join(coordinator.missing)}; blind to {_list(coordinator.blind)}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    if coordinator.reason:
        console.print(f"  {coordinator.reason}", markup=False, soft_wrap=True)
    words = ["predict", str(plan), "PHOTO", *where] if found.well else ["launch", str(plan)]
    print_next(console, "edgevit", "cluster", *words)


def _cells(device: DeviceStatus, worker: WorkerStatus, *, first: bool) -> list[str]:
    """One row of markup; what is of the device stands in its first row only."""
    from edgevit.cli.output import plain

    heat, role = device.temperature_c, " (replica)" if worker.role == "replica" else ""
    own = (device.name, device.address or "–") if first else ("", "")
    return [
        *map(plain, own),
        plain(f"{worker.submodel}{role}"),
        f"[{STYLES[worker.state]}]{worker.state}[/]",
        "–" if worker.p50_ms is None else f"{worker.p50_ms:.2f} ms",
        "" if not first else "–" if heat is None else f"{heat:.0f}",
        _ago(device.last_seen_s) if first else "",
    ]


def _reasons(found: ClusterStatus) -> list[str]:
    """Why something is not ready, and what else is to be known; the same of several once."""
    places: dict[str, list[str]] = {}
    for device in found.devices:
        for worker in device.workers:
            if worker.reason:
                places.setdefault(worker.reason, []).append(f"{worker.submodel}@{device.name}")
        if device.note:
            places.setdefault(device.note, []).append(device.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in places.items()]


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no class"


def _ago(seconds: float | None) -> str:
    """How long ago, in the largest unit that tells."""
    if seconds is None:
        return "–"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago" if seconds >= 1 else "now"

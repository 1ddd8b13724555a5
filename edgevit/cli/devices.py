"""edgevit devices: how the agents are that a devices.yaml lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevit.cli.app import AsJson, app
from edgevit.cli.device_options import (
    DevicesFile,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    quiet_grpc,
)

if TYPE_CHECKING:
    from runtime.devices.file import AddressOptions
    from runtime.devices.survey import Seen

DEADLINE_S = 3.0
STYLES = {"ready": "green", "live": "yellow", "unreachable": "red"}


@app.command("devices")
def devices(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|HOST:PORT]...", help="Default: all of devices.yaml."),
    ] = None,
    file: DevicesFile = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """List device agents with their state: hardware, engines, models, memory, disk, clock."""
    quiet_grpc()
    from edgevit.cli.output import print_json
    from runtime.devices.file import AddressOptions, find_devices
    from runtime.devices.survey import survey

    options = AddressOptions(tls_ca, tls_cert, tls_key, token_file)
    found = survey(find_devices(words or [], file, options), DEADLINE_S)
    if as_json:
        print_json({"devices": [_as_json(seen) for seen in found]})
    else:
        _show(found, file, options)
    if any(seen.state == "unreachable" for seen in found):
        raise typer.Exit(1)


def _as_json(seen: Seen) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from runtime.client import Device

    known = {"name": seen.known.name, "address": seen.known.how.address, "state": seen.state}
    if seen.device is None:
        return {**known, "reason": seen.reason}
    values = TypeAdapter(Device).dump_python(seen.device, mode="json", exclude_none=True)
    return {
        **known,
        "round_trip_s": seen.round_trip_s,
        "clock_difference_s": seen.clock_difference_s,
        **{("own_name" if key == "name" else key): value for key, value in values.items()},
    }


def _show(found: list[Seen], file: Path | None, options: AddressOptions) -> None:
    from rich import box
    from rich.table import Table

    from edgevit.cli.output import plain, print_next, stdout

    console = stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("device", "state", "hardware", "edgevit", "engines", "models"):
        table.add_column(header, overflow="fold")
    for header in ("memory\nfree", "disk\nfree", "°C", "clock"):
        table.add_column(header, justify="right", no_wrap=True)
    for seen in found:
        name, address = seen.known.name, seen.known.how.address
        state = f"[{STYLES[seen.state]}]{seen.state}[/]" + (
            f"\n{plain(seen.short)}" if seen.short else ""
        )
        label = plain(name if name == address else f"{name}\n{address}")
        table.add_row(label, state, *map(plain, _cells(seen)))
    console.print(table)
    for seen in found:
        if seen.reason:
            console.print(f"{seen.known.name}: {seen.reason}", markup=False, soft_wrap=True)
    first = next((seen for seen in found if seen.state == "ready" and seen.device), None)
    if first is not None:
        name = first.known.name
        if ":" in name:
            where = options.words()
        else:
            where = ["--devices", str(file)] if file is not None else []
        print_next(console, "edgevit", "profile", "OUT", "--device", name, *where)


def _cells(seen: Seen) -> list[str]:
    """Hardware to clock; an en dash for what is not told."""
    device = seen.device
    if device is None:
        return ["–"] * 8
    environment = device.environment
    engines = [f"{e.name} {e.version}".strip() for e in device.engines if e.available]
    models = [f"{m.name}{'' if m.state == 'READY' else f' ({m.state})'}" for m in device.models]
    heat = device.temperature_c
    return [
        f"{environment.device}\n{environment.system}, {environment.machine}",
        f"{device.edgevit_version}\nstart {device.generation}",
        "\n".join(engines) or "none",
        "\n".join(models) or "none",
        _gigabytes(device.memory_available),
        _gigabytes(device.disk_free),
        "–" if heat is None else f"{heat:.0f}",
        _difference(seen.clock_difference_s or 0.0, seen.round_trip_s or 0.0),
    ]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _difference(seconds: float, round_trip_s: float) -> str:
    """How far a clock is off, or how far at most where that is less than the call can tell."""
    if abs(seconds) <= round_trip_s / 2:
        return f"±{round_trip_s / 2 * 1e3:.0f} ms"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:+.0f} ms"
    return f"{seconds:+.1f} s" if abs(seconds) < 600 else f"{seconds / 60:+.0f} min"

"""A latency table for other programs: JSON with everything, CSV with a row a part."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from converters.slim.cost.records import Entry
from converters.slim.cost.schema import SCHEMA_VERSION
from converters.slim.cost.setup import Setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError

COLUMNS = (
    "engine", "engine_version", "target", "precision", "threads", "device", "hostname",
    "edgevit_version", "family", "kind", "side", "dims", "ms", "spread_ms", "samples", "times",
    "date",
)  # fmt: skip


def export_json(store: Store, path: Path) -> None:
    """Write every setup with its entries and networks, whole or not at all. Raises SlimError."""
    setups = [_as_json(store, setup) for setup in store.setups()]
    data = {"schema_version": SCHEMA_VERSION, "kind": "edgevit-latency-table", "setups": setups}
    _write(path, json.dumps(data, indent=1) + "\n")


def export_csv(store: Store, path: Path) -> None:
    """Write a row for each part of each setup, whole or not at all. Raises SlimError."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for setup in store.setups():
        writer.writerows(_row(setup, entry) for entry in _sorted(store, setup))
    _write(path, text.getvalue())


def _as_json(store: Store, setup: Setup) -> dict[str, Any]:
    networks = [
        {**asdict(network), "shape": json.loads(network.shape)}
        for network in store.all_networks(setup)
    ]
    entries = [
        {**asdict(entry.part), **{k: v for k, v in asdict(entry).items() if k != "part"}}
        for entry in _sorted(store, setup)
    ]
    return {"setup": json.loads(setup.to_json()), "entries": entries, "networks": networks}


def _sorted(store: Store, setup: Setup) -> list[Entry]:
    return [entry for _, entry in sorted(store.entries(setup).items())]


def _row(setup: Setup, entry: Entry) -> tuple[object, ...]:
    part = entry.part
    return (
        setup.engine, setup.engine_version, setup.target, setup.precision, setup.threads,
        setup.machine.device, setup.machine.hostname, setup.edgevit_version,
        part.family, part.kind, part.side, "x".join(map(str, part.dims)),
        repr(entry.ms), repr(entry.spread_ms), entry.samples, entry.times, entry.date,
    )  # fmt: skip


def _write(path: Path, text: str) -> None:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        hidden = Path(name)
        try:
            with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
                file.write(text)
            hidden.replace(path)
        except BaseException:
            with suppress(OSError):
                hidden.unlink()
            raise
    except OSError as error:
        raise SlimError(f"cannot write {path}: {error.strerror}") from error

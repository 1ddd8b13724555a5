"""RUN.json and its CSV of raw samples."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from runtime.bundle import check_version, first_problem
from runtime.errors import RuntimeFault
from runtime.run_record import RUN_SCHEMA_VERSION, RunRecord

COLUMNS = ("id", "label", "engine", "threads", "block", "index", "ms")


def save_run(record: RunRecord, path: Path) -> None:
    """Write a run as JSON, whole or not at all. Raises RuntimeFault where the folder refuses."""
    text = record.model_dump_json(indent=1, exclude_none=True) + "\n"
    _write(path, text)


def load_run(path: Path) -> RunRecord:
    """Read a run. Raises RuntimeFault where the file is no run or of a newer edgevit."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimeFault(f"cannot read {path}: {error.strerror}") from error
    return parse_run(data, path)


def parse_run(text: str | bytes, origin: Path | str) -> RunRecord:
    """The run in a JSON text; `origin` is where it came from, for RuntimeFault."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RuntimeFault(f"{origin} is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("kind") != "edgevit-run":
        raise RuntimeFault(f"{origin} is not a run file: expected the JSON of `edgevit profile`")
    check_version(data, origin, RUN_SCHEMA_VERSION)
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        raise RuntimeFault(f"{origin}: {first_problem(error)}") from error


def write_csv(record: RunRecord, path: Path) -> None:
    """Write one row a raw sample: id, label, engine, threads, block, index in the block, ms."""
    rows = (
        (m.id, m.label, m.engine, m.threads, block, index, repr(ms))
        for m in record.measurements
        for block, samples in enumerate(m.samples_ms)
        for index, ms in enumerate(samples)
    )
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    except OSError as error:
        raise RuntimeFault(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Write beside the file, then rename over it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RuntimeFault(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise RuntimeFault(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            Path(name).unlink()

"""What a search was begun with, and what its clock said: OUT.partial/journal.jsonl.

The first line is the identity: a search goes on only as it was begun. The others are latencies,
each written before it is used, so that a search that goes on sees the same numbers, also where the
latency table has learnt more meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.bundle_writer import CURES
from converters.slim.errors import SlimError

NAME = "journal.jsonl"
SCHEMA = 1


class Journal:
    """The journal in a folder, which a lock keeps for this process.

    Raises SlimError for a journal of another run, by what differs, and for a damaged one.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        told = json.loads(json.dumps({"schema_version": SCHEMA, **identity}))
        self._known: dict[tuple[str, str], Any] = {}
        lines = self._read()
        if lines:
            _same(lines[0], told, folder)
            for line in lines[1:]:
                self._known[line["kind"], line["key"]] = line["value"]
        else:
            self._append(told)

    def get(self, kind: str, key: str) -> Any:
        """What was kept, or None."""
        return self._known.get((kind, key))

    def keep(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON value on the disk. Raises SlimError where the disk refuses."""
        self._append({"kind": kind, "key": key, "value": value})
        self._known[kind, key] = value

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; what a cut left of the last one is taken away."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            for line in lines[1:]:
                _ = line["kind"], line["key"], line["value"]
            if lines and "schema_version" not in lines[0]:
                raise ValueError("no identity")
        except (ValueError, KeyError, TypeError) as error:
            raise SlimError(
                f"{self.path} is damaged: remove {self.path.parent} to begin anew"
            ) from error
        return lines

    def _append(self, value: Mapping[str, Any]) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(value, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            cure = CURES.get(error.errno or 0) or error.strerror or str(error)
            raise SlimError(f"cannot write {self.path}: {cure}") from error


def _same(begun: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> None:
    differing = [n for n in {**begun, **told} if begun.get(n) != told.get(n)]
    if differing:
        listed = "; ".join(
            f"{n.replace('_', ' ')} was {_short(begun.get(n))}, now {_short(told.get(n))}"
            for n in differing
        )
        raise SlimError(
            f"{folder} was begun otherwise: {listed}. A search goes on only as it was begun: give "
            f"the same again, another -o, or remove that folder"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

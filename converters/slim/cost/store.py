"""The latency table's file: SQLite, safe for several processes at once and for a kill at any time.

    setups    a row for each setup that was measured, its JSON as the key
    entries   the latency of a part under a setup
    networks  whole networks under a setup: measured, and the sum of their parts

What stands in the file stays as it is: a second measurement of a part does not replace the first,
so that a search that goes on reads what it read before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converters.slim.cost import schema
from converters.slim.cost.records import Entry, NetworkEntry
from converters.slim.cost.setup import Setup
from converters.slim.errors import SlimError
from converters.slim.families.base import Part


class Store:
    """An open table file. Safe from any thread; several processes may have the same file open."""

    def __init__(self, path: Path) -> None:
        """Open the file, make it where there is none.

        Raises SlimError: another program's file, a damaged one, one of a newer edgevit, a folder
        that takes no files, a full disk.
        """
        self.path = path
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(
                path, timeout=schema.WAIT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def setups(self) -> list[Setup]:
        """Every setup that the file has times of."""
        return [self._setup(text) for (text,) in self._rows(schema.SETUPS)]

    def require(self, setup: Setup) -> None:
        """Raise SlimError where the file has times, and all of them are of other setups."""
        others = self.setups()
        if not others or setup in others:
            return
        nearest = min((setup.differences(other) for other in others), key=len)
        listed = "\n".join(f"  {other}" for other in others)
        raise SlimError(
            f"{self.path} has no times of {setup}\nIt has times of:\n{listed}\n"
            f"The nearest differs in: {'; '.join(nearest)}. Measure here first, or give the table "
            "of this setup"
        )

    def entries(self, setup: Setup) -> dict[Part, Entry]:
        """Every part that was measured under this setup, and under no other."""
        found = (self._entry(row) for row in self._rows(schema.ENTRIES, setup.to_json()))
        return {entry.part: entry for entry in found}

    def missing(self, setup: Setup, parts: Iterable[Part]) -> list[Part]:
        """Those that have no latency under this setup, sorted, each once."""
        there = self.entries(setup).keys()
        return sorted(set(parts) - there)

    def add(self, setup: Setup, entries: Iterable[Entry]) -> None:
        """Keep these, all or none; a part that has a latency keeps it."""
        rows = [
            (e.part.family, e.part.kind, e.part.side, json.dumps(e.part.dims), *astuple(e)[1:])
            for e in entries
        ]
        self._add(setup, schema.ADD_ENTRY, rows)

    def networks(
        self, setup: Setup, family: str, side: int, classes: int
    ) -> dict[str, NetworkEntry]:
        """The networks of a family that were measured under this setup, by their shape's JSON."""
        return {
            each.shape: each
            for each in self.all_networks(setup)
            if (each.family, each.side, each.classes) == (family, side, classes)
        }

    def all_networks(self, setup: Setup) -> list[NetworkEntry]:
        """Every network that was measured under this setup."""
        return [NetworkEntry(*row) for row in self._rows(schema.NETWORKS, setup.to_json())]

    def add_networks(self, setup: Setup, networks: Iterable[NetworkEntry]) -> None:
        """Keep these, all or none; a network that was measured before stays as it is."""
        self._add(setup, schema.ADD_NETWORK, [astuple(network) for network in networks])

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Have the measuring for this file to ourselves: wait for another process that measures.

        The lock goes with the process that holds it, however that ends.
        """
        place = self.path.with_name(f"{self.path.name}.lock")
        try:
            file = place.open("ab")
        except OSError as error:
            raise SlimError(f"cannot write {place}: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        """Check whose file it is, and make the tables where it is new."""
        self._db.execute("PRAGMA foreign_keys = ON")
        version, application = self._pragma("user_version"), self._pragma("application_id")
        empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty:
            self._check(version, application)
        self._use_wal()
        if not empty:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # Else another process was quicker.
            if self._pragma("application_id") != schema.APPLICATION_ID:
                for statement in schema.TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _check(self, version: int, application: int) -> None:
        if application != schema.APPLICATION_ID:
            raise SlimError(
                f"{self.path} is an SQLite file of another program, not a latency table; give "
                "another file"
            )
        if version > schema.SCHEMA_VERSION:
            raise SlimError(
                f"{self.path} has schema version {version}, this edgevit reads "
                f"{schema.SCHEMA_VERSION}: it was made by a newer edgevit, upgrade with pip "
                "install -U edgevit"
            )
        if version != schema.SCHEMA_VERSION:
            raise SlimError(
                f"{self.path}: expected schema version {schema.SCHEMA_VERSION}, got {version}"
            )

    def _use_wal(self) -> None:
        """Readers and one writer at a time; the switch itself does not wait for others."""
        end = time.monotonic() + schema.WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _roll_back(self) -> None:
        """Undo; a full disk has done it already."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._db.execute(statement, values).fetchall()

    def _add(self, setup: Setup, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows under a setup, whose own row is made where it has none; all or nothing."""
        text = setup.to_json()
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute(schema.ADD_SETUP, (text,))
                (number,) = self._db.execute(schema.SETUP_ID, (text,)).fetchone()
                self._db.executemany(statement, [(number, *row) for row in rows])
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """One clear error for whatever SQLite refuses."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            cure = next((c for start, c in schema.CURES.items() if name.startswith(start)), None)
            raise SlimError(f"the latency table {self.path}: {cure or error}") from error

    def _setup(self, text: str) -> Setup:
        try:
            return Setup.from_json(text)
        except (KeyError, TypeError, ValueError) as error:
            raise SlimError(f"the latency table {self.path}: {schema.DAMAGED}") from error

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        family, kind, side, dims, *rest = row
        try:
            part = Part(family, kind, side, tuple(int(size) for size in json.loads(dims)))
        except (TypeError, ValueError) as error:
            raise SlimError(f"the latency table {self.path}: {schema.DAMAGED}") from error
        return Entry(part, *rest)

"""The SQL of a latency table, and what SQLite's refusals mean to a person."""

from __future__ import annotations

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6564_6C74  # "edlt", so that another program's SQLite file is known as such
WAIT_S = 30.0
"""How long one process waits for another's write."""

TABLES = (
    """
    CREATE TABLE setups (
        id INTEGER PRIMARY KEY,
        setup TEXT NOT NULL UNIQUE
    )
    """,
    """
    CREATE TABLE entries (
        setup INTEGER NOT NULL REFERENCES setups (id),
        family TEXT NOT NULL, kind TEXT NOT NULL, side INTEGER NOT NULL, dims TEXT NOT NULL,
        ms REAL NOT NULL CHECK (ms > 0), spread_ms REAL NOT NULL, samples INTEGER NOT NULL,
        times INTEGER NOT NULL, date TEXT NOT NULL,
        PRIMARY KEY (setup, family, kind, side, dims)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE networks (
        setup INTEGER NOT NULL REFERENCES setups (id),
        family TEXT NOT NULL, shape TEXT NOT NULL, side INTEGER NOT NULL, classes INTEGER NOT NULL,
        measured_ms REAL NOT NULL CHECK (measured_ms > 0), parts_ms REAL NOT NULL,
        samples INTEGER NOT NULL, date TEXT NOT NULL,
        PRIMARY KEY (setup, family, shape, side, classes)
    ) WITHOUT ROWID
    """,
)
ADD_SETUP = "INSERT INTO setups (setup) VALUES (?) ON CONFLICT DO NOTHING"
SETUP_ID = "SELECT id FROM setups WHERE setup = ?"
SETUPS = "SELECT setup FROM setups ORDER BY id"
ADD_ENTRY = """
    INSERT INTO entries
        (setup, family, kind, side, dims, ms, spread_ms, samples, times, date)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
ENTRIES = """
    SELECT family, kind, side, dims, ms, spread_ms, samples, times, date
    FROM entries JOIN setups ON setups.id = entries.setup WHERE setups.setup = ?
"""
ADD_NETWORK = """
    INSERT INTO networks
        (setup, family, shape, side, classes, measured_ms, parts_ms, samples, date)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
NETWORKS = """
    SELECT family, shape, side, classes, measured_ms, parts_ms, samples, date
    FROM networks JOIN setups ON setups.id = networks.setup WHERE setups.setup = ?
    ORDER BY family, shape, side, classes
"""

DAMAGED = "it is damaged; take it away and measure again, or bring back a copy"
CURES = {
    "SQLITE_NOTADB": "it is no SQLite file, or is damaged; give another file, or take it away",
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_FULL": "the disk is full; make room. What was measured before is kept",
    "SQLITE_IOERR": "the disk does not take or give its bytes (full, or failing); make room. What "
    "was measured before is kept",
    "SQLITE_READONLY": "it cannot be written; give a file in a folder that can",
    "SQLITE_CANTOPEN": "it cannot be opened or made there; give a file in a folder that exists and "
    "can be written",
    "SQLITE_PERM": "no permission; give another file",
    "SQLITE_BUSY": f"another process has been writing to it for over {WAIT_S:g} s; try again",
    "SQLITE_CONSTRAINT": "a time in it would not be positive",
}

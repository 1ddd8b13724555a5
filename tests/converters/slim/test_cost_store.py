"""The latency table's file: setups apart, whole after anything, one error a misfortune."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import ROOT
from slim_cost_tools import a_part, a_setup, an_entry

from converters.slim.cost.export import export_csv, export_json
from converters.slim.cost.records import NetworkEntry
from converters.slim.cost.schema import SCHEMA_VERSION
from converters.slim.cost.setup import Setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError

OURS, THEIRS = a_setup(), a_setup(engine_version="2.0", threads=4)
FORK = multiprocessing.get_context("fork")  # they touch SQLite only


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.sqlite"


@pytest.fixture
def store(path):
    with Store(path) as opened:
        yield opened


def a_network(shape: str = '{"depth": 2}', ms: float = 3.0) -> NetworkEntry:
    return NetworkEntry("tiny", shape, 32, 10, ms, 2.5, 100, "2026-11-21T00:00:00+00:00")


def test_what_goes_in_comes_out_also_after_opening_again(store, path):
    entries = [an_entry(a_part(width), width / 7) for width in (48, 16, 32)]
    store.add(OURS, entries)
    store.add_networks(OURS, [a_network()])
    store.close()
    with Store(path) as again:
        assert again.entries(OURS) == {entry.part: entry for entry in entries}
        assert again.networks(OURS, "tiny", 32, 10) == {a_network().shape: a_network()}
        assert again.networks(OURS, "tiny", 64, 10) == {}
        assert again.setups() == [OURS]
        lacking = [a_part(64), a_part(16), a_part(8), a_part(64)]
        assert again.missing(OURS, lacking) == [a_part(8), a_part(64)]


def test_entries_of_another_setup_are_never_read(store):
    store.add(OURS, [an_entry(a_part(), 1.0)])
    store.add(THEIRS, [an_entry(a_part(), 9.0), an_entry(a_part(32), 9.0)])
    store.add_networks(THEIRS, [a_network()])
    assert {part: entry.ms for part, entry in store.entries(OURS).items()} == {a_part(): 1.0}
    assert store.missing(OURS, [a_part(), a_part(32)]) == [a_part(32)]
    assert store.networks(OURS, "tiny", 32, 10) == {}


def test_a_table_of_other_setups_says_which(store):
    store.require(OURS)  # an empty one has nothing to mix
    store.add(THEIRS, [an_entry(a_part())])
    governed = a_setup(engine_version="3.0", precision="fp16", edgevit_version="9")
    store.add(governed, [an_entry(a_part())])
    with pytest.raises(SlimError) as caught:
        store.require(OURS)
    said = str(caught.value)
    assert "has no times of onnxruntime 1.0 (onnx fp32, 1 thread) on host" in said
    assert "onnxruntime 2.0 (onnx fp32, 4 threads)" in said and "(onnx fp16" in said
    assert "The nearest differs in: engine_version: 1.0, 2.0; threads: 1, 4" in said
    store.require(THEIRS)


def test_a_measured_part_keeps_its_latency(store):
    store.add(OURS, [an_entry(a_part(), 1.0)])
    store.add(OURS, [an_entry(a_part(), 2.0), an_entry(a_part(32), 2.0)])
    assert [entry.ms for _, entry in sorted(store.entries(OURS).items())] == [1.0, 2.0]
    store.add_networks(OURS, [a_network(ms=3.0)])
    store.add_networks(OURS, [a_network(ms=4.0)])
    assert store.networks(OURS, "tiny", 32, 10)[a_network().shape].measured_ms == 3.0


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan")])
def test_no_time_that_is_not_positive_and_nothing_of_its_group(store, ms):
    with pytest.raises(SlimError, match="would not be positive"):
        store.add(OURS, [an_entry(a_part(32)), an_entry(a_part(), ms)])
    assert store.entries(OURS) == {} and store.setups() == []
    store.add(OURS, [an_entry(a_part())])
    assert len(store.entries(OURS)) == 1


def test_a_setup_is_the_same_after_json_and_tells_machines_apart():
    assert Setup.from_json(OURS.to_json()) == OURS
    assert "tools: (('torch', '2.0'),), ()" in OURS.differences(a_setup(tools=()))
    assert OURS.differences(OURS) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a picture of a cat" * 100, "no SQLite file, or is damaged"),
        (b"SQLite format 3\0" + b"\7" * 4000, "no SQLite file, or is damaged"),
    ],
)
def test_a_file_that_is_no_table(path, content, words):
    path.write_bytes(content)
    with pytest.raises(SlimError, match=words) as caught:
        Store(path)
    assert str(path) in str(caught.value) and path.read_bytes() == content


def test_a_table_whose_pages_are_damaged(path):
    with Store(path) as store:
        store.add(OURS, [an_entry(a_part(8 * i)) for i in range(1, 400)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(SlimError, match="damaged"), Store(path) as store:
        store.entries(OURS)


def test_the_file_of_another_program_and_of_a_newer_edgevit(path, tmp_path):
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE cats (name TEXT)")
    db.close()
    with pytest.raises(SlimError, match="another program"):
        Store(other)
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(SlimError, match="made by a newer edgevit, upgrade"):
        Store(path)


@pytest.mark.parametrize("place", ["/proc/table.sqlite", "absent/table.sqlite", "."])
def test_a_place_that_takes_no_file(tmp_path, place):
    with pytest.raises(SlimError, match="cannot be opened or made there"):
        Store(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(path):
    with Store(path) as store:
        store.add(OURS, [an_entry(a_part())])
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with pytest.raises(SlimError, match="cannot be"), Store(path) as store:
            store.add(OURS, [an_entry(a_part(32))])
    finally:
        path.parent.chmod(0o755)


def _write_too_much(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    with pytest.raises(SlimError, match="make room"), Store(path) as store:
        for start in range(0, 20_000, 500):
            store.add(OURS, [an_entry(a_part(1 + start + i)) for i in range(500)])
    os._exit(42)


def test_a_full_disk_keeps_what_was_measured_before(path):
    with Store(path) as store:
        store.add(OURS, [an_entry(a_part())])
    child = FORK.Process(target=_write_too_much, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == 42
    with Store(path) as store:
        found = store.entries(OURS)
        assert a_part() in found and len(found) % 500 in (0, 1), "a group is there or is not"
        store.add(OURS, [an_entry(a_part(10**6))])


def _write_some(path: Path, number: int) -> None:
    setup = OURS if number % 2 else THEIRS
    for i in range(25):
        with Store(path) as store:
            store.add(setup, [an_entry(a_part(100 * number + 2 * i + j)) for j in range(2)])
    os._exit(0)


def test_writers_side_by_side_from_the_first_moment(path):
    children = [FORK.Process(target=_write_some, args=(path, n)) for n in range(1, 5)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4
    with Store(path) as store:
        for setup, numbers in ((OURS, (1, 3)), (THEIRS, (2, 4))):
            widths = {part.dims[0] for part in store.entries(setup)}
            assert widths == {100 * n + i for n in numbers for i in range(50)}


KILLED = """
import sys
from pathlib import Path
from slim_cost_tools import a_part, a_setup, an_entry
from converters.slim.cost.store import Store
store = Store(Path(sys.argv[1]))
with store.measuring():
    for i in range(1, 10**6):
        store.add(a_setup(), [an_entry(a_part(2 * i + j)) for j in range(2)])
        print(i, flush=True)
"""


def test_a_kill_leaves_whole_groups_and_no_lock(path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(20):
        last = process.stdout.readline()
    time.sleep(0.01)
    process.kill()
    process.communicate()
    with Store(path) as store, store.measuring():
        widths = sorted(part.dims[0] for part in store.entries(OURS))
        assert widths == list(range(2, 2 + len(widths))) and len(widths) % 2 == 0
        assert len(widths) >= 2 * int(last)


def test_only_one_measures_at_a_time(path):
    with Store(path) as first, Store(path) as second:
        begin, held = FORK.Event(), FORK.Event()

        def hold() -> None:
            begin.wait(20)
            with second.measuring():
                held.set()
            os._exit(0)

        child = FORK.Process(target=hold)
        child.start()  # before the lock is taken: a fork has its parent's locks
        with first.measuring():
            begin.set()
            assert not held.wait(0.3)
            first.add(OURS, [an_entry(a_part())])  # the lock is about measuring, not the file
        assert held.wait(20)
        child.join(20)


def test_csv_and_json_have_everything(store, tmp_path):
    store.add(OURS, [an_entry(a_part(32), 0.5), an_entry(a_part(16), 0.25)])
    store.add(THEIRS, [an_entry(a_part(16), 4.0)])
    store.add_networks(OURS, [a_network()])
    export_csv(store, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["engine_version"], r["dims"], float(r["ms"])) for r in rows] == [
        ("1.0", "16", 0.25), ("1.0", "32", 0.5), ("2.0", "16", 4.0),
    ]  # fmt: skip
    export_json(store, tmp_path / "table.json")
    ours, theirs = json.loads((tmp_path / "table.json").read_text())["setups"]
    assert Setup.from_json(json.dumps(ours["setup"])) == OURS
    assert [(e["kind"], e["dims"], e["ms"]) for e in ours["entries"]] == [
        ("block", [16], 0.25), ("block", [32], 0.5),
    ]  # fmt: skip
    assert ours["networks"][0]["shape"] == {"depth": 2} and theirs["networks"] == []
    with pytest.raises(SlimError, match="cannot write"):
        export_csv(store, tmp_path / "absent" / "table.csv")

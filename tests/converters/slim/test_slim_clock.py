"""The clock of a search: the table's word, kept; and a guess where the table lacks parts."""

from __future__ import annotations

import json

import pytest
from slim_tiny import SIDE, WHOLE, TinyFamily, TinyShape, part_ms

from converters.slim.clock import TableClock
from converters.slim.cost.predict import LatencyTable, call_part
from converters.slim.cost.records import Entry, NetworkEntry
from converters.slim.cost.setup import local_setup
from converters.slim.cost.store import Store
from converters.slim.errors import SlimError
from converters.slim.families.base import Part
from converters.slim.journal import Journal
from edgevit.models.shapes import shape_as_json

FAMILY = TinyFamily()
CALL_MS = 0.01


def entry(part: Part, ms: float) -> Entry:
    return Entry(part, ms, 0.0, 1, 1, "2026")


@pytest.fixture
def table(tmp_path):
    """It knows the parts of some shapes."""
    shapes = [TinyShape((a, b), (1, 1)) for a in (8, 16, 24) for b in (8, 16, 32)]
    parts = {part for shape in shapes for part in FAMILY.parts(shape, SIDE, 10)}
    with Store(tmp_path / "table.sqlite") as store:
        store.add(
            local_setup("onnx", None, 1),
            [entry(part, part_ms(part)) for part in parts] + [entry(call_part(SIDE, 10), CALL_MS)],
        )
    with LatencyTable.open(tmp_path / "table.sqlite", FAMILY, "onnx") as table:
        yield table


def clock(table, folder) -> TableClock:
    return TableClock(table, Journal(folder, {"seed": 0}), SIDE, 10)


def by_hand(shape: TinyShape) -> float:
    parts = FAMILY.parts(shape, SIDE, 10)
    return CALL_MS + sum(count * part_ms(part) for part, count in parts.items())


def test_a_prediction_is_the_sum_of_the_parts(table, tmp_path):
    shapes = [TinyShape((24, 32), (3, 2)), TinyShape((8, 16), (1, 1))]
    found = clock(table, tmp_path).predict(shapes)
    assert found == pytest.approx([by_hand(shape) for shape in shapes])


def test_a_prediction_stays_when_the_table_learns_more(table, tmp_path):
    """Networks that are measured later make a correction, and a search that goes on has none."""
    shape = TinyShape((16, 16), (2, 2))
    (before,) = clock(table, tmp_path).predict([shape])
    networks = [
        NetworkEntry(
            FAMILY.name, json.dumps(shape_as_json(other), sort_keys=True), SIDE, 10,
            3 * by_hand(other), by_hand(other) - CALL_MS, 1, "2026",
        )
        for other in (TinyShape((a, b), (1, 1)) for a in (8, 16) for b in (8, 16, 32))
    ]  # fmt: skip
    table.store.add_networks(table.setup, networks)
    assert table.latency(shape, SIDE, 10).ms > 2 * before
    assert clock(table, tmp_path).predict([shape]) == [before]


def test_a_guess_at_an_unknown_part_is_near_and_measures_nothing(table, tmp_path):
    """Width 24 of stage 2 is not in the table."""
    shape = TinyShape((16, 24), (2, 2))
    missing = table.missing(shape, SIDE, 10)
    assert {part.kind for part in missing} == {"block", "down", "head"}
    guess = clock(table, tmp_path).rough(shape)
    assert guess == pytest.approx(by_hand(shape) - CALL_MS, rel=0.25)
    assert table.missing(shape, SIDE, 10) == missing
    known = TinyShape((16, 32), (2, 2))
    assert clock(table, tmp_path).rough(known) == pytest.approx(by_hand(known) - CALL_MS)


@pytest.mark.slow
def test_a_part_that_cannot_be_measured_is_an_error_that_names_it(table, tmp_path):
    with pytest.raises(SlimError, match="tinyslim block 24 at 4 px"):
        clock(table, tmp_path).predict([TinyShape((16, 24), (2, 2))])


def test_a_measured_network_is_not_measured_again(table, tmp_path, monkeypatch):
    first = clock(table, tmp_path)
    first.journal.keep("measured", _key(WHOLE), 1.25)
    monkeypatch.setattr(LatencyTable, "measure_networks", None)  # nothing may ask for it
    assert first.measure({"end": WHOLE.build(10, SIDE)}) == {"end": 1.25}


def _key(shape: TinyShape) -> str:
    return json.dumps([FAMILY.name, shape_as_json(shape)], sort_keys=True)

"""RUN.json, CSV, statistics and the description of the device."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from runtime.cores import pick_cores
from runtime.environment import describe
from runtime.errors import RuntimeFault
from runtime.run_files import load_run, save_run, write_csv
from runtime.run_record import Measurement, Memory, RunRecord
from runtime.stats import compare, latency_stats


def measurement(name, samples_ms):
    return Measurement(
        id=name,
        label=f"label, {name}",
        file=f"{name}.onnx",
        sha256="0" * 64,
        size_bytes=1,
        engine="onnxruntime",
        engine_version="1",
        threads=2,
        input_shape=[1, 3, 8, 8],
        input_dtype="float32",
        load_ms=1.0,
        first_run_ms=1.0,
        warmup_runs=9,
        warmup_steady=True,
        samples_ms=samples_ms,
        latency=latency_stats(samples_ms),
        memory=Memory(before_load=1, after_load=2, peak=3),
    )


@pytest.fixture
def run():
    measurements = [measurement("slow", [[4.0, 5.0], [6.0]]), measurement("fast", [[2.0], [3.0]])]
    return RunRecord(
        edgevit_version="0.1.0",
        created="2026-11-21T00:00:00+00:00",
        environment=describe(),
        threads=2,
        runs=3,
        method={"blocks": 2},
        measurements=measurements,
        comparisons=compare(measurements),
    )


def test_statistics_by_hand():
    stats = latency_stats([[1.0, 2.0], [3.0, 4.0, 5.0]])
    assert (stats.n, stats.mean, stats.min, stats.max, stats.p50) == (5, 3.0, 1.0, 5.0, 3.0)
    assert stats.p90 == pytest.approx(4.6) and stats.std == pytest.approx(np.sqrt(2.5))
    assert latency_stats([[1.0]]).std == 0.0


def test_comparison_by_hand(run):
    (comparison,) = run.comparisons
    assert (comparison.a, comparison.b, comparison.ratio) == ("slow", "fast", 5.0 / 2.5)
    assert comparison.low == pytest.approx(2.0 + 0.05 * 0.25)  # blocks: 4.5/2 and 6/3
    assert comparison.high == pytest.approx(2.0 + 0.95 * 0.25)
    assert compare([]) == [] and compare(run.measurements[:1]) == []


def test_json_round_trip(run, tmp_path):
    path = tmp_path / "run.json"
    save_run(run, path)
    assert load_run(path) == run
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert "null" not in path.read_text()  # what was not measured is absent


def test_csv_has_every_raw_sample(run, tmp_path):
    path = tmp_path / "run.csv"
    write_csv(run, path)
    rows = list(csv.DictReader(path.open(newline="")))
    assert [(r["id"], r["block"], r["index"], float(r["ms"])) for r in rows] == [
        ("slow", "0", "0", 4.0),
        ("slow", "0", "1", 5.0),
        ("slow", "1", "0", 6.0),
        ("fast", "0", "0", 2.0),
        ("fast", "1", "0", 3.0),
    ]
    assert rows[0]["label"] == "label, slow" and rows[0]["threads"] == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "is not a run file"),
        ('{"schema_version": 1}', "is not a run file"),
        ('{"kind": "edgevit-run", "schema_version": 2}', "made by a newer edgevit"),
        ('{"kind": "edgevit-run", "schema_version": 1}', "field 'edgevit_version'"),
    ],
)
def test_load_errors(tmp_path, text, message):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RuntimeFault, match=message):
        load_run(path)


def test_unwritable_and_absent_files(run, tmp_path):
    with pytest.raises(RuntimeFault, match="cannot read"):
        load_run(tmp_path / "gone.json")
    for write in (save_run, write_csv):
        with pytest.raises(RuntimeFault, match="cannot write"):
            write(run, tmp_path / "no" / "folder" / "run.out")


def test_failed_write_leaves_the_old_file(run, tmp_path):
    path = tmp_path / "run.json"
    path.mkdir()
    with pytest.raises(RuntimeFault, match="cannot write"):
        save_run(run, path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_environment_is_what_the_system_tells():
    found = describe()
    assert found.machine and found.python.startswith("3.") and found.cores_logical >= 1
    assert json.loads(found.model_dump_json())["memory_total"] > 1e8
    assert found.temperature_c is None or 0 < found.temperature_c < 150


def test_cores_to_pin(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    speeds = {0: 446, 1: 446, 2: 1024, 3: 1024}  # two small cores, two big ones
    monkeypatch.setattr("runtime.cores._speed", speeds.__getitem__)
    monkeypatch.setattr("runtime.cores._number", lambda _: None)
    assert pick_cores(1) == [3] and pick_cores(2) == [2, 3] and pick_cores(3) == [1, 2, 3]
    assert pick_cores(4) is None
    siblings = {0: 0, 1: 0, 2: 1, 3: 1}
    monkeypatch.setattr("runtime.cores._speed", lambda _: 0)
    monkeypatch.setattr(
        "runtime.cores._number",
        lambda path: 0 if path.name != "core_id" else siblings[int(path.parts[-3][3:])],
    )
    assert pick_cores(2) == [1, 3]
    monkeypatch.setattr("sys.platform", "darwin")
    assert pick_cores(1) is None

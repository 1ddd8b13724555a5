"""The profiler: fresh processes, interleaved blocks, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest

import runtime.profiler as profiler
from runtime.child import Child, ChildFailedError
from runtime.errors import RuntimeFault
from runtime.profile_items import ProfileItem, items_from
from runtime.profiler import profile

TARGETS = ["tflite", "onnx", "executorch"]


@pytest.fixture(scope="module")
def record(tiny):
    """One run of all three engines, with per-op times."""
    return profile(items_from([tiny.paths[t] for t in TARGETS]), runs=50, min_time_s=0, per_op=True)


def test_blocks_and_samples(record):
    assert not record.not_measured
    for m in record.measurements:
        assert [len(block) for block in m.samples_ms] == [3] * 20
        assert min(min(block) for block in m.samples_ms) > 0
        flat = np.concatenate(m.samples_ms)
        assert m.latency.n == 60 >= record.runs
        assert m.latency.p50 == np.percentile(flat, 50) and m.latency.p99 == np.percentile(flat, 99)
        assert m.latency.min == flat.min() and m.latency.std == pytest.approx(flat.std(ddof=1))


def test_what_a_measurement_says(record, tiny):
    by_id = {m.id: m for m in record.measurements}
    assert set(by_id) == {"tiny.tflite", "tiny.onnx", "tiny.pte"}
    for target in TARGETS:
        m = by_id[tiny.paths[target].name]
        assert m.input_shape == list(tiny.input_for(target).shape) and m.input_dtype == "float32"
        assert m.size_bytes == tiny.paths[target].stat().st_size and m.threads == 1
        assert m.import_ms > 0 and m.load_ms > 0 and m.first_run_ms > 0 and m.warmup_runs >= 9
        assert 0 < m.memory.before_load <= m.memory.peak >= m.memory.after_load
    assert by_id["tiny.tflite"].delegation.partitions >= 2
    assert by_id["tiny.pte"].delegation.delegate == "XnnpackBackend"
    assert by_id["tiny.onnx"].delegation is None
    assert by_id["tiny.tflite"].ops and by_id["tiny.onnx"].ops
    assert by_id["tiny.pte"].ops is None and "EVENT_TRACER" in by_id["tiny.pte"].ops_note
    # torch is only in the process that needs it: the others stay small
    assert by_id["tiny.tflite"].memory.peak < by_id["tiny.pte"].memory.before_load


def test_comparisons_are_against_the_fastest(record):
    by_id = {m.id: m for m in record.measurements}
    fastest = min(record.measurements, key=lambda m: m.latency.p50)
    assert {c.a for c in record.comparisons} == set(by_id) - {fastest.id}
    for c in record.comparisons:
        a, b = by_id[c.a], by_id[c.b]
        assert b is fastest and c.ratio == a.latency.p50 / b.latency.p50 >= 1
        blocks = [
            np.median(x) / np.median(y) for x, y in zip(a.samples_ms, b.samples_ms, strict=True)
        ]
        assert (c.low, c.high) == tuple(np.percentile(blocks, [5, 95]))


def test_method_and_environment_are_stated(record):
    assert record.method["blocks"] == 20 and "A B C A B C" in record.method["order"]
    assert "for 0 of 3, else random" in record.method["input"]
    assert record.environment.cores_logical >= 1 and record.environment.memory_total > 0


def test_blocks_take_turns_one_at_a_time(tiny, monkeypatch):
    asked = []

    class Recorded(Child):
        def ask(self, question, timeout_s):
            asked.append(("start", self.pid, question["do"]))
            answer = super().ask(question, timeout_s)
            asked.append(("end", self.pid, question["do"]))
            return answer

    monkeypatch.setattr(profiler, "Child", Recorded)
    profile(items_from([tiny.paths["onnx"], tiny.paths["tflite"]]), runs=5, min_time_s=0)
    blocks = [(edge, pid) for edge, pid, do in asked if do == "block"]
    a, b = dict.fromkeys(pid for _, pid in blocks)
    assert blocks == [("start", a), ("end", a), ("start", b), ("end", b)] * 5


def test_bundle_items_carry_their_manifest_and_use_the_reference(make_bundle):
    folder = make_bundle("onnx", "tflite")
    record = profile(items_from([folder]), runs=2, min_time_s=0)
    assert [m.label for m in record.measurements] == ["tiny onnx fp32", "tiny tflite fp32"]
    assert [m.target for m in record.measurements] == ["onnx", "tflite"]
    assert all(m.model == "tiny" and m.verification.status == "passed" for m in record.measurements)
    assert "for 2 of 2" in record.method["input"]
    (single,) = items_from([folder / "tiny.onnx"])
    assert single.artifact.precision == "fp32" and single.reference is not None


def test_equal_names_are_told_apart(make_bundle, tiny):
    first, second = make_bundle("onnx", name="one"), make_bundle("onnx", name="two")
    items = items_from([first, second, first])
    assert len({i.id for i in items}) == len({i.label for i in items}) == 3
    assert items[0].label == "tiny onnx fp32 (one)" and items[2].label.endswith("#2")


def test_items_from_refuses_what_is_neither(tmp_path):
    with pytest.raises(RuntimeFault, match="no such bundle or artefact"):
        items_from([tmp_path / "gone"])
    with pytest.raises(RuntimeFault, match=r"has no manifest\.json"):
        items_from([tmp_path])
    (tmp_path / "weights.h5").touch()
    with pytest.raises(RuntimeFault, match=r"expected one of \.tflite"):
        items_from([tmp_path / "weights.h5"])


def test_bad_artefacts_are_not_measured_and_the_others_go_on(tiny, make_bundle, tmp_path):
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(tiny.paths["executorch"].read_bytes()[:5000])
    bundle = make_bundle("tflite")
    items = [
        *items_from([damaged, tiny.paths["onnx"], bundle]),
        ProfileItem(tmp_path / "gone.onnx"),
    ]
    (bundle / "tiny.tflite").write_bytes(b"changed")
    record = profile(items, runs=2, min_time_s=0)
    assert [m.id for m in record.measurements] == ["tiny.onnx"]
    reasons = {n.id: n.reason for n in record.not_measured}
    assert "not a whole ExecuTorch program" in reasons["damaged.pte"]
    assert "changed since it was made" in reasons["tiny/tflite/fp32"]
    assert "no such artefact" in reasons["gone.onnx"]
    assert not psutil.Process().children()


def test_process_that_dies_in_its_turn_is_reported(tiny):
    def kill_the_first(message, fraction):
        if message == "block 2 of 3":
            children = sorted(psutil.Process().children(), key=lambda p: (p.create_time(), p.pid))
            os.kill(children[0].pid, signal.SIGKILL)

    items = items_from([tiny.paths["tflite"], tiny.paths["onnx"]])
    record = profile(items, runs=3, min_time_s=0, progress=kill_the_first)
    (gone,), (stayed,) = record.not_measured, record.measurements
    assert gone.id == "tiny.tflite" and "signal SIGKILL" in gone.reason
    assert stayed.id == "tiny.onnx" and len(stayed.samples_ms) == 3
    assert not record.comparisons


def test_interrupt_ends_every_process(tiny):
    seen = []

    def interrupt(message, fraction):
        seen.extend(p.pid for p in psutil.Process().children())
        if message.startswith("block 2"):
            raise KeyboardInterrupt

    items = items_from([tiny.paths["tflite"], tiny.paths["onnx"]])
    with pytest.raises(KeyboardInterrupt):
        profile(items, runs=4, min_time_s=0, progress=interrupt)
    assert len(set(seen)) == 2 and not any(psutil.pid_exists(pid) for pid in seen)


def test_process_that_hangs_is_ended():
    child = Child(1)
    with pytest.raises(ChildFailedError, match="unknown question 'dance'"):
        child.ask({"do": "dance"}, 60)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildFailedError, match="no answer to 'memory' within 1 s"):
        child.ask({"do": "memory"}, 1)
    assert not psutil.pid_exists(child.pid)
    with pytest.raises(ChildFailedError):
        child.ask({"do": "memory"}, 5)
    child.close()


def test_child_ends_when_its_parent_lets_go():
    child = Child(1)
    with pytest.raises(ChildFailedError):
        child.ask({"do": "dance"}, 60)
    started = time.monotonic()
    child.close()
    assert time.monotonic() - started < 3 and not psutil.pid_exists(child.pid)


def test_another_working_directory_with_a_module_of_the_same_name(tiny, tmp_path, monkeypatch):
    (tmp_path / "runtime.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    record = profile(items_from([tiny.paths["onnx"]]), runs=1, min_time_s=0)
    assert len(record.measurements) == 1 and not record.not_measured


def test_enough_runs_for_the_time_and_no_more_than_the_limit(tiny):
    items = items_from([tiny.paths["onnx"]])
    longer = profile(items, runs=2, min_time_s=0.2).measurements[0]
    assert longer.latency.n * longer.latency.mean >= 50  # of 200 ms; the machine may speed up
    short = profile(items, runs=100_000, min_time_s=0, max_time_s=0.2)
    assert short.measurements[0].latency.n < 100_000
    assert any("runs instead of 100000" in note for note in short.notes)


def test_more_threads_than_cores_is_noted(tiny):
    cores = psutil.cpu_count()
    record = profile(items_from([tiny.paths["onnx"]]), threads=cores + 1, runs=1, min_time_s=0)
    assert f"{cores + 1} threads on {cores} logical cores" in record.notes[0]
    assert record.measurements[0].threads == cores + 1


@pytest.mark.parametrize("bad", [{"threads": 0}, {"runs": 0}, {"max_time_s": 0}])
def test_impossible_numbers_are_refused(tiny, bad):
    with pytest.raises(RuntimeFault, match="expected threads >= 1"):
        profile(items_from([tiny.paths["onnx"]]), **bad)


def test_nothing_to_profile():
    with pytest.raises(RuntimeFault, match="nothing to profile"):
        profile([])

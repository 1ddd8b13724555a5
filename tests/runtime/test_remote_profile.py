"""Profiles over a real gRPC server: the same record as here, one at a time, ended with the call."""

from __future__ import annotations

import asyncio
import json
import threading

import grpc
import psutil
import pytest
from device_tools import answer_of, run, serving, until
from store_tools import write_bundle

import runtime.profiler as profiler
from runtime.cancel import Cancel, Cancelled
from runtime.profile_items import items_from
from runtime.run_record import RunRecord
from runtime.serving.storage.store import Store

CODE = grpc.StatusCode


@pytest.fixture
def store(tmp_path, make_bundle):
    """A store with the tiny network for two engines, as 'tiny'."""
    opened = Store.open(tmp_path / "store")
    opened.add(make_bundle("tflite", "onnx"))
    yield opened
    opened.close()


async def profile(device, **fields):
    """The progress as (message, fraction) and the run record's JSON."""
    steps, text = [], ""
    async for part in device("Profile", **fields):
        assert text == "", "the record is the last"
        if part.HasField("progress"):
            steps.append((part.progress.message, part.progress.fraction))
        else:
            text = part.run_json
    return steps, text


async def begin(device, word, **fields):
    """A profile that has told `word`."""
    started = device("Profile", **fields)
    while word not in (await started.read()).progress.message:
        pass
    return started


def measuring():
    """The measuring processes of this process."""
    children = psutil.Process().children(recursive=True)
    return [c for c in children if any("runtime.measure" in word for word in c.cmdline())]


# Blocks of half a minute: no answer to one comes before the test is over.
ENDLESS = {"bundle": "tiny", "targets": ["tflite"], "min_time_s": 600.0, "max_time_s": 600.0}


def test_the_record_is_that_of_a_local_profile(store):
    stored = store.find("tiny")
    fields = {"runs": 40, "min_time_s": 1e-6, "per_op": True}

    async def main():
        async with serving(store) as device:
            return await profile(device, bundle="tiny", **fields)

    steps, text = run(main)
    remote = RunRecord.model_validate_json(text)
    local = profiler.profile(items_from([stored.path]), **fields)
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions) and steps[-1] == ("done", 1.0) and len(steps) > 20
    assert not remote.not_measured and remote.environment.name == "board"
    assert remote.environment.device == local.environment.device
    assert [(m.id, m.label, m.file, m.sha256) for m in remote.measurements] == [
        (m.id, m.label, m.file, m.sha256) for m in local.measurements
    ]
    assert [[len(b) for b in m.samples_ms] for m in remote.measurements] == [[2] * 20] * 2
    assert remote.method == local.method and remote.threads == local.threads
    assert all(m.ops for m in remote.measurements) and len(remote.comparisons) == 1
    assert not any("served" in note for note in remote.notes)

    def shape(record):
        environment = {k for k in record["environment"] if k not in ("name", "frequency_mhz")}
        return set(record), environment, [set(m) for m in record["measurements"]]

    written = json.loads(local.model_dump_json(exclude_none=True))
    assert shape(json.loads(text)) == shape(written)


def test_chosen_targets_defaults_and_what_was_served_meanwhile(store):
    served = iter([5, 12])

    async def main():
        async with serving(store, served=lambda: next(served)) as device:
            return await profile(device, bundle=store.find("tiny").digest, targets=["onnx"], runs=5)

    record = RunRecord.model_validate_json(run(main)[1])
    assert [m.target for m in record.measurements] == ["onnx"]
    assert record.threads == 1 and record.method["max_time_s"] == 120.0
    assert "7 inference requests were served on the device meanwhile" in "".join(record.notes)


def test_a_caller_that_goes_ends_the_profile_at_once(store):
    async def main():
        async with serving(store) as device:
            started = await begin(device, "block 1", **ENDLESS)
            assert len(measuring()) == 1
            started.cancel()
            await until(lambda: not measuring())
            return await profile(device, bundle="tiny", targets=["tflite"], runs=5)

    threads = threading.active_count()
    record = RunRecord.model_validate_json(run(main)[1])
    assert [m.target for m in record.measurements] == ["tflite"]
    assert threading.active_count() <= threads + 8  # of pools, not one a call


def test_a_server_that_stops_ends_the_profile(store):
    async def main():
        async with serving(store) as device:
            started = await begin(device, "block 1", **ENDLESS)
            await device.server.stop(0.1)
            await until(lambda: not measuring())
            return await answer_of(started.read())

    assert run(main).code() in (CODE.CANCELLED, CODE.UNAVAILABLE)


def test_one_at_a_time_and_its_bundle_stays(store):
    async def main():
        async with serving(store) as device:
            first = await begin(device, "block 1", **ENDLESS)
            busy = await answer_of(device("Profile", bundle="tiny").read())
            kept = await answer_of(device("Remove", bundle="tiny"))
            first.cancel()
            await until(lambda: not measuring())
            await asyncio.sleep(0.2)
            removed = await device("Remove", bundle="tiny")
            return busy, kept, removed

    busy, kept, removed = run(main)
    assert busy.code() is CODE.RESOURCE_EXHAUSTED and "busy" in busy.details()
    assert kept.code() is CODE.FAILED_PRECONDITION and "being profiled" in kept.details()
    assert removed.freed > 0


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"bundle": "tyny"}, CODE.NOT_FOUND, "Did you mean 'tiny'?"),
        ({"targets": ["coreml"]}, CODE.INVALID_ARGUMENT, "has no target 'coreml'"),
        ({"targets": ["onnx", "onnx"]}, CODE.INVALID_ARGUMENT, "twice"),
        ({"threads": 10_000}, CODE.INVALID_ARGUMENT, "threads of at most 256"),
        ({"runs": 2**32 - 1}, CODE.INVALID_ARGUMENT, "runs of at most"),
        ({"max_time_s": 1e9}, CODE.INVALID_ARGUMENT, "max_time_s of at most 3600"),
        ({"min_time_s": float("nan")}, CODE.INVALID_ARGUMENT, "min_time_s"),
        ({"max_time_s": -1.0}, CODE.INVALID_ARGUMENT, "max_time_s"),
    ],
)
def test_what_no_profile_can_be(store, fields, code, words):
    async def main():
        async with serving(store) as device:
            error = await answer_of(device("Profile", **({"bundle": "tiny"} | fields)).read())
            return error, (await profile(device, bundle="tiny", targets=["onnx"], runs=2))[1]

    error, after = run(main)
    assert error.code() is code and words in error.details()
    assert str(store.root) not in error.details()
    assert RunRecord.model_validate_json(after).measurements


def test_a_bundle_without_a_target(store, tmp_path):
    path = write_bundle(tmp_path / "empty", change=lambda m: m["artifacts"].clear())
    store.add(path, "empty")

    async def main():
        async with serving(store) as device:
            started = device("Profile", bundle="empty")
            return await answer_of(started.read())

    error = run(main)
    assert error.code() is CODE.INVALID_ARGUMENT and str(store.root) not in error.details()
    assert error.details() == (
        "the bundle 'empty': every target failed to convert, nothing to profile"
    )


def test_a_bundle_whose_bytes_changed_is_not_measured(store):
    stored = store.find("tiny")
    path = stored.bundle.artifact_path("onnx")
    path.write_bytes(path.read_bytes() + b"more")

    async def main():
        async with serving(store) as device:
            return await profile(device, bundle="tiny", runs=3)

    record = RunRecord.model_validate_json(run(main)[1])
    assert [m.target for m in record.measurements] == ["tflite"]
    assert [n.target for n in record.not_measured] == ["onnx"]


@pytest.mark.parametrize("early", [True, False])
def test_cancel_from_another_thread(tiny, early):
    """Before the first process, and while one is in the middle of a block."""
    cancel = Cancel()
    if early:
        cancel.cancel()
    told = []

    def progress(message, fraction):
        told.append(message)
        if "block" in message:
            threading.Timer(0.2, cancel.cancel).start()

    items = items_from([tiny.paths["tflite"], tiny.paths["onnx"]])
    with pytest.raises(Cancelled):
        profiler.profile(items, min_time_s=600, max_time_s=600, progress=progress, cancel=cancel)
    assert measuring() == [] and told == told[: 0 if early else 3]

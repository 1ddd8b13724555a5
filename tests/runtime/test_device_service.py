"""DeviceService over a real gRPC server: describe, upload, remove."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
from device_tools import Line, Models, answer_of, held_of, run, serving, stream, until
from store_tools import NAMED, REF, tree, write_bundle

import runtime.serving.services.device as device_service
import runtime.serving.storage.uploads as uploads
from runtime.digest import size_of
from runtime.run_record import Environment
from runtime.serving.limits import MIB, Limits
from runtime.serving.storage.uploads import sound
from runtime.wire.bundle_plan import chunks, plan_of
from runtime.wire.descriptors import message

CODE = grpc.StatusCode
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_bundle(tmp_path / "source", size=200_000, more={"deep/notes.txt": b"x" * 5000})


def test_describe(store, source):
    stored = store.add(source, "mine")
    models = Models([Line("mine", stored.digest, queued=3)], [os.getppid()])
    limits = Limits(store_bytes=10**9)

    async def main():
        async with serving(store, limits, models=models) as device:
            return await device("Describe")

    before = time.time_ns()
    told = run(main)
    assert (told.device_id, told.generation, told.name) == (store.device_id, 1, "board")
    assert before <= told.clock_unix_ns <= time.time_ns() and told.uptime_s > 0
    environment = Environment.model_validate_json(told.environment_json)
    assert environment.name == "board" and environment.cores_logical == psutil.cpu_count()
    assert told.memory_total == psutil.virtual_memory().total > told.memory_available > 0
    assert told.memory_agent > 10 * MIB and told.disk_free > 0
    assert told.store_used == size_of(source)
    (bundle,) = told.bundles
    assert (bundle.digest, list(bundle.names), bundle.size) == (
        stored.digest,
        ["mine"],
        stored.size,
    )
    assert (bundle.model, list(bundle.targets)) == (REF, ["tflite"])
    (model,) = told.models
    assert (model.name, model.state, model.queued, model.threads) == ("mine", "READY", 3, 1)
    assert told.limits.bundle_bytes == limits.bundle_bytes and told.limits.store_bytes == 10**9
    assert told.HasField("temperature_c") == (environment.temperature_c is not None)


WITHOUT = """
import sys
from importlib.machinery import PathFinder
hidden = set(sys.argv[1].split(","))
find = PathFinder.find_spec.__func__
def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find(cls, name, path, target)
PathFinder.find_spec = classmethod(find_spec)
import json
from runtime.sessions.installed import installed
import runtime.serving.services.facts
print(json.dumps({i.engine.name: [i.package, i.version, i.missing] for i in installed()}))
heavy = {"torch", "executorch", "onnxruntime", "ai_edge_litert", "coremltools"} & set(sys.modules)
assert not heavy, heavy
"""


def test_engines_are_told_without_importing_them(store):
    async def main():
        async with serving(store) as device:
            return (await device("Describe")).engines

    told = {engine.name: engine for engine in run(main)}
    assert list(told) == ["litert", "onnxruntime", "executorch", "coreml"]
    for name in ["litert", "onnxruntime", "executorch"]:
        assert told[name].available and told[name].version[0].isdigit() and not told[name].reason
    assert told["coreml"].available == (sys.platform == "darwin")
    assert told["coreml"].target == "coreml" and told["litert"].package == "ai-edge-litert"
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, "torch,ai_edge_litert"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    without = json.loads(found.stdout)
    assert without["onnxruntime"][2] is None
    package, version, missing = without["litert"]
    assert package == version == "" and missing.endswith("pip install 'edgevit[litert]'")
    assert without["executorch"][2].startswith("torch is not installed")


def test_upload_and_names(store, source):
    plan = plan_of(source)
    statuses = []

    async def main():
        async with serving(store, uploaded=statuses.append) as device:
            first = await device.upload(source)
            status = await device("UploadStatus", digest=plan.digest)
            second = await device.upload(source, "other")
            return first, status, second

    first, status, second = run(main)
    assert (first.name, first.digest, first.received) == (NAMED, plan.digest, plan.size)
    assert not first.was_complete and status.complete and list(status.names) == [NAMED]
    assert (second.name, second.received, second.was_complete) == ("other", 0, True)
    assert tree(store.find("other").path) == tree(source)
    assert statuses == ["OK", "OK"]


def cut_stream(plan, source, after):
    """The first `after` messages; then the line is dead, but not closed."""

    async def messages():
        for number, request in enumerate(chunks(plan, source, {}, 4096)):
            if number == after:
                await asyncio.Event().wait()
            yield request

    return messages()


@pytest.mark.parametrize("after", [0, 1, 2, 20, 48])
def test_a_cut_upload_goes_on_where_it_was(store, source, after):
    plan = plan_of(source)
    came = sum(len(r.chunk.data) for r in list(chunks(plan, source, {}, 4096))[:after])

    statuses = []

    async def main():
        async with serving(store, uploaded=statuses.append) as device:
            started = device("UploadBundle", cut_stream(plan, source, after))
            await until(lambda: sum(store.held(plan.digest).values()) == came)
            started.cancel()
            await until(lambda: not store._active)
            held = await held_of(device, plan)
            assert store.bundles() == []
            return held, await device.upload(source)

    held, answer = run(main)
    assert sum(held.values()) == came == plan.size - answer.received
    assert statuses[-1] == "OK" and set(statuses[:-1]) <= {"CANCELLED"}
    assert after < 2 or len(statuses) == 2
    assert tree(store.find(NAMED).path) == tree(source)


def test_a_stalled_upload_is_ended_and_kept(store, source, monkeypatch):
    monkeypatch.setattr(device_service, "IDLE_S", 0.5)
    plan = plan_of(source)

    async def main():
        async with serving(store) as device:
            error = await answer_of(device("UploadBundle", cut_stream(plan, source, 11)))
            return error, await held_of(device, plan)

    error, held = run(main)
    assert error.code() is CODE.DEADLINE_EXCEEDED and "goes on from there" in error.details()
    assert sum(held.values()) == sum(
        len(r.chunk.data) for r in list(chunks(plan, source, {}, 4096))[:11]
    )


def test_wrong_streams(store, source):
    plan = plan_of(source)
    messages = list(chunks(plan, source, {}, 4096))
    spoiled = message("edgevit.v1.UploadRequest")()
    spoiled.CopyFrom(messages[1])
    spoiled.chunk.sha256 = hashlib.sha256(b"other").digest()
    statuses = []

    async def main():
        async with serving(store, uploaded=statuses.append) as device:

            async def refused(*sent):
                return await answer_of(device.send(sent))

            errors = [
                await refused(),
                await refused(messages[1]),
                await refused(message("edgevit.v1.UploadRequest")()),
                await refused(messages[0], messages[0]),
                await refused(messages[0], spoiled),
                await refused(*messages[:-1]),
                await refused(messages[0], messages[1]),  # it is there already
            ]
            answer = await device.upload(source)
            errors.append(await answer_of(device("UploadStatus", digest="x")))
            return errors, answer

    errors, answer = run(main)
    codes = [error.code() for error in errors]
    invalid, missing = CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION
    assert codes == [invalid] * 4 + [CODE.DATA_LOSS, missing, missing, invalid]
    assert "not whole" in errors[5].details() and "ask UploadStatus" in errors[6].details()
    assert 0 < answer.received <= 4096
    assert statuses == [code.name for code in codes[:-1]] + ["OK"]


def test_four_uploads_at_once_and_two_of_one_bundle(store, tmp_path):
    sources = [write_bundle(tmp_path / f"s{i}", seed=i) for i in range(5)]
    plans = [plan_of(path) for path in sources]

    async def main():
        async with serving(store) as device:

            def started(i):
                return device("UploadBundle", cut_stream(plans[i], sources[i], 2))

            running = [started(0)]
            await until(lambda: len(store._active) == 1)
            same = await answer_of(device.send(list(chunks(plans[0], sources[0], {}, 4096))[:1]))
            running += [started(i) for i in (1, 2, 3)]
            await until(lambda: len(store._active) == 4)
            fifth = await answer_of(device.send(list(chunks(plans[4], sources[4], {}, 4096))[:1]))
            for each in running:
                each.cancel()
            await until(lambda: not store._active)
            for path in sources:
                await device.upload(path, path.name)
            return same, fifth

    same, fifth = run(main)
    assert same.code() is CODE.ABORTED and fifth.code() is CODE.RESOURCE_EXHAUSTED
    assert {name for s in store.bundles() for name in s.names} == {f"s{i}" for i in range(5)}


@pytest.fixture
def slow_end(monkeypatch):
    """The last check of an upload waits: the events that it is there, and that it may go on."""
    going, may_end = threading.Event(), threading.Event()

    def slow(folder):
        going.set()
        assert may_end.wait(60)
        return sound(folder)

    monkeypatch.setattr(uploads, "sound", slow)
    return going, may_end


def test_other_calls_go_on_while_the_disk_works(store, source, slow_end):
    """A finish that takes its time is a thread's business."""
    going, may_end = slow_end

    async def main():
        async with serving(store) as device:
            upload = asyncio.ensure_future(device.upload(source))
            await until(going.is_set)
            status = await device("UploadStatus", digest=plan_of(source).digest)
            may_end.set()
            return status, await upload

    status, answer = run(main)
    assert sum(held.bytes for held in status.held) == answer.received and not status.complete


def test_a_caller_that_goes_during_the_end_leaves_a_whole_bundle(store, source, slow_end):
    going, may_end = slow_end

    async def main():
        async with serving(store) as device:
            upload = device("UploadBundle", stream(list(chunks(plan_of(source), source, {}, 4096))))
            await until(going.is_set)
            upload.cancel()
            await asyncio.sleep(0.1)
            may_end.set()
            await until(lambda: store.bundles() and not store._active)

    run(main)
    assert tree(store.find(NAMED).path) == tree(source)


def test_remove(store, source):
    digest = store.add(source, "a").digest
    store.add(source, "b")
    models = Models([Line("a", digest), Line("a/tflite", digest)])

    async def main():
        async with serving(store, models=models) as device:
            by_name = await answer_of(device("Remove", bundle="a"))
            by_digest = await answer_of(device("Remove", bundle=digest))
            freed = [(await device("Remove", bundle="b")).freed]
            models.lines = [Line("b", digest)]  # its name has gone, the model goes on
            last = await answer_of(device("Remove", bundle="a"))
            models.lines = []
            freed.append((await device("Remove", bundle="a")).freed)
            gone = await answer_of(device("Remove", bundle="a"))
            return by_name, by_digest, last, freed, gone

    by_name, by_digest, last, freed, gone = run(main)
    for error in (by_name, by_digest, last):
        assert error.code() is CODE.FAILED_PRECONDITION
    assert "loaded as a, a/tflite" in by_digest.details()
    assert freed == [0, size_of(source)] and gone.code() is CODE.NOT_FOUND

"""The models of an agent, on a real store: load, find, swap, unload, remember."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from engine_tools import FOREVER, bundle_with, counting, doubling, gone, run, until

from runtime.serving.model import ModelSettings
from runtime.serving.models import Models
from runtime.sessions import installed
from runtime.wire.refused import Refused

CODE = grpc.StatusCode
ROOT = Path(__file__).resolve().parents[2]
X = np.full((1, 2), 3, np.float32)


@pytest.fixture
def both(make_bundle, store):
    """A bundle with two targets, called 'both'."""
    return store.add(make_bundle("tflite", "onnx", name="both"), "both")


def with_models(store, work, **settings):
    """Run work(models), and close them whatever happens."""

    async def whole():
        models = Models(store, ModelSettings(**settings))
        try:
            return await work(models)
        finally:
            await models.close(5.0)

    return run(whole())


async def refusal(work):
    """The status and text that a coroutine is refused with."""
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.code, str(caught.value)


def entry_of(models, name):
    (entry,) = (entry for entry in models.index() if entry.name == name)
    return entry


def test_load_infer_unload(tiny, store, both):
    async def work(models):
        model = await models.load("both")
        assert models.find("both") is model and models.find("both", both.digest[:12]) is model
        assert (model.target, model.state) == ("tflite", "READY")
        answer = await model.infer([tiny.input_for("tflite", 2)])
        entry, pids = entry_of(models, "both"), model.worker_pids()
        assert models.loaded() == [model] and models.in_use(both.digest) == ["both"]
        await models.unload("both")
        assert models.loaded() == [] and models.in_use(both.digest) == []
        return answer.outputs[0], entry, entry_of(models, "both"), pids

    y, before, after, pids = with_models(store, work, threads=2)
    assert np.allclose(y, tiny.outputs_NK[2:3], atol=1e-4)
    assert (before.state, before.target, before.precision) == ("READY", "tflite", "fp32")
    assert (before.version, before.digest) == (both.digest[:12], both.digest)
    assert (before.threads, before.queued) == (2, 0)
    assert (after.state, after.reason, after.target) == ("UNAVAILABLE", "it is not loaded", "")
    assert all(gone(pid) for pid in pids)


def test_a_target_of_ones_own_choice_beside_the_best(tiny, store, both):
    async def work(models):
        best, chosen = await models.load("both"), await models.load("both/onnx")
        assert (best.target, chosen.target, chosen.name) == ("tflite", "onnx", "both/onnx")
        answers = [await model.infer([tiny.input_for(model.target, 1)]) for model in (best, chosen)]
        assert models.in_use(both.digest) == ["both", "both/onnx"]
        assert [entry.name for entry in models.index()] == ["both", "both/onnx"]
        return [answer.outputs[0] for answer in answers]

    for y in with_models(store, work):
        assert np.allclose(y, tiny.outputs_NK[1:2], atol=1e-4)


def test_names_that_are_not_there(store, both):
    async def work(models):
        found = [
            await refusal(models.load("bother")),
            await refusal(models.load("both/tflte")),
            await refusal(models.load(both.digest)),
            await refusal(models.unload("x" * 5000)),
        ]
        await models.load("both")
        for name, version in (("btoh", ""), ("both/onxx", ""), ("both", "0" * 12)):
            with pytest.raises(Refused) as caught:
                models.find(name, version)
            found.append((caught.value.code, str(caught.value)))
        return found

    found = with_models(store, work)
    assert {code for code, _ in found} == {CODE.NOT_FOUND}
    texts = [text for _, text in found]
    assert "Did you mean 'both'?" in texts[0] and "Did you mean 'tflite'?" in texts[1]
    assert len(texts[3]) < 400 and "Did you mean 'both'?" in texts[4]
    assert "Did you mean 'onnx'?" in texts[5]
    assert f"has version {both.digest[:12]}, not '000000000000'" in texts[6]
    assert not any(str(store.root) in text for text in texts)


def test_a_model_that_is_not_loaded_says_what_to_do(store, both):
    async def work(models):
        with pytest.raises(Refused, match="'both/onnx' is not loaded: load it first") as caught:
            models.find("both/onnx")
        await models.unload("both")  # nothing happens
        return caught.value.code

    assert with_models(store, work) == CODE.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({}, "tflite"),
        ({"tflite": {"status": "failed", "prover": "test", "reason": "far off"}}, "onnx"),
    ],
)
def test_the_best_target_passed_its_verification(make_bundle, store, change, target):
    def edit(manifest):
        for name, verification in change.items():
            manifest["artifacts"][name]["verification"] = verification

    store.add(make_bundle("onnx", "tflite", change=edit), "m")

    async def work(models):
        return (await models.load("m")).target

    assert with_models(store, work) == target


def test_no_target_that_runs_here(make_bundle, store, monkeypatch):
    def edit(manifest):
        failed = {"status": "failed", "prover": "test", "reason": "far off"}
        manifest["artifacts"]["tflite"]["verification"] = failed

    store.add(make_bundle("onnx", "tflite", change=edit), "m")
    absent = {**installed.PACKAGES, "onnxruntime": (("no_such_module", "onnxruntime"),)}
    monkeypatch.setattr(installed, "PACKAGES", absent)

    async def work(models):
        found = await refusal(models.load("m")), await refusal(models.load("m/onnx"))
        await models.load("m/tflite")  # who asks for it by name gets it
        return *found, entry_of(models, "m").reason

    (code, why), (other, also), reason = with_models(store, work)
    assert code == other == CODE.FAILED_PRECONDITION and reason == why
    assert "tflite: its verification failed: far off" in why
    assert "onnx: onnxruntime is not installed: pip install 'edgevit[onnx]'" in why
    assert "'m/onnx' cannot run here: onnxruntime is not installed" in also


def test_which_engines_are_installed_is_found_without_importing_them():
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from runtime.sessions.installed import installed
found = {i.engine.name: [i.package, i.version, i.missing] for i in installed()}
print(json.dumps([found, sorted(sys.modules)]))
"""
    command = [sys.executable, "-c", code, str(ROOT)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, modules = json.loads(out)
    assert not {"ai_edge_litert", "onnxruntime", "executorch", "torch", "coremltools"} & {*modules}
    for name in ("litert", "onnxruntime", "executorch"):
        package, version, missing = found[name]
        assert package and version[0].isdigit() and missing is None
    if sys.platform != "darwin":
        assert found["coreml"][2] == "Core ML runs on macOS only"


def test_changed_bytes_are_not_served(store, both):
    path = both.bundle.artifact_path("tflite")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)

    async def work(models):
        found = await refusal(models.load("both"))
        entry = entry_of(models, "both")
        await models.load("both/onnx")  # which is whole
        return *found, entry

    code, why, entry = with_models(store, work)
    assert code == CODE.DATA_LOSS and "expected sha256" in why
    assert entry.state == "UNAVAILABLE" and "expected sha256" in entry.reason


def test_changed_bytes_are_mended_by_another_upload(make_bundle, store):
    source = make_bundle("onnx")
    stored = store.add(source, "m")
    path = stored.bundle.artifact_path("onnx")
    path.write_bytes(bytes(path.stat().st_size))

    async def work(models):
        code, why = await refusal(models.load("m"))
        whole = store.whole(stored.digest)
        await asyncio.to_thread(store.add, source, "m")
        reason = entry_of(models, "m").reason
        return code, why, whole, reason, (await models.load("m")).state

    code, why, whole, reason, state = with_models(store, work)
    assert code == CODE.DATA_LOSS and str(store.root) not in why and "upload" in why
    assert (whole, reason, state) == (None, "it is not loaded", "READY")


def test_a_failure_goes_with_its_bundle(make_bundle, store):
    stored = store.add(make_bundle("onnx", name="bad"), "m")
    stored.bundle.artifact_path("onnx").write_bytes(b"other bytes")
    other = make_bundle("tflite", name="good")

    async def work(models):
        await refusal(models.load("m"))
        before = entry_of(models, "m").reason
        store.remove("m")
        store.add(other, "m")
        with pytest.raises(Refused) as caught:
            models.find("m")
        return before, entry_of(models, "m").reason, str(caught.value)

    before, after, why = with_models(store, work)
    assert "expected" in before and after == "it is not loaded" and "the last time" not in why


def test_unloading_works_where_the_disk_does_not(store, both, caplog):
    async def work(models):
        model = await models.load("both")
        (store.root / "models.json.new").mkdir()  # nothing can be written there
        with caplog.at_level(logging.WARNING):
            await models.unload("both")
        (store.root / "models.json.new").rmdir()
        return model.state, models.loaded()

    assert with_models(store, work) == ("UNAVAILABLE", [])
    assert "model both is unloaded but still remembered: the agent's disk fails" in caplog.text


def test_loading_again_does_nothing_but_new_settings_swap(store, both):
    async def work(models):
        first = await models.load("both")
        assert await models.load("both") is first
        assert await models.load("both", threads=1, instances=1) is first
        second = await models.load("both", instances=2)
        assert models.find("both") is second and len(second.worker_pids()) == 2
        assert await models.load("both") is second  # what is not asked for stays as it is
        await until(lambda: first.state == "UNAVAILABLE")
        return store.remembered()

    assert with_models(store, work) == {"both": {"threads": 1, "instances": 2}}


def test_a_newer_bundle_takes_over_without_a_gap(make_bundle, store, tmp_path):
    def double(name, batch):
        artifact = doubling(tmp_path / f"{name}.onnx", batch)
        return store.add(bundle_with(make_bundle("onnx", name=name), artifact), "m")

    async def work(models):
        first = await models.load("m")
        answers, stop = [], asyncio.Event()

        async def client():
            while not stop.is_set():
                answer = await models.find("m").infer([X])
                answers.append(answer.outputs[0].tolist())
                await asyncio.sleep(0)

        clients = [asyncio.ensure_future(client()) for _ in range(3)]
        newer = await asyncio.to_thread(double, "two", "n")
        second = await models.load("m")
        assert second.version == newer.digest[:12] != first.version
        seen = len(answers)
        await until(lambda: len(answers) > seen + 10)
        stop.set()
        await asyncio.gather(*clients)
        await until(lambda: first.worker_pids() == [])
        return answers, second.inputs[0].shape

    double("one", 1)
    answers, shape = with_models(store, work)
    assert answers == [[[6, 6]]] * len(answers) and shape == [-1, 2]


def test_a_failed_swap_keeps_what_was_there(make_bundle, store, tmp_path):
    store.add(bundle_with(make_bundle("onnx", name="a"), doubling(tmp_path / "a.onnx")), "m")

    async def work(models):
        first = await models.load("m")
        bad = make_bundle("onnx", name="b")
        newer = await asyncio.to_thread(store.add, bad, "m")
        newer.bundle.artifact_path("onnx").write_bytes(b"other bytes")
        code, _ = await refusal(models.load("m"))
        answer = await models.find("m").infer([X])
        return code, models.find("m") is first, answer.outputs[0].tolist(), entry_of(models, "m")

    code, same, y, entry = with_models(store, work)
    assert code == CODE.DATA_LOSS and same and y == [[6, 6]] and entry.state == "READY"


def test_what_was_loaded_is_loaded_again(make_bundle, store, both):
    gone_bad = store.add(make_bundle("onnx", name="bad"), "bad")

    async def first(models):
        await models.load("bad")
        await models.load("both", threads=2)
        await models.load("both/onnx")
        await models.unload("both/onnx")

    with_models(store, first)
    gone_bad.bundle.artifact_path("onnx").write_bytes(b"other bytes")

    async def second(models):
        failed = await models.restore()
        return failed, [(m.name, m.settings.threads) for m in models.loaded()], models.index()

    failed, loaded, index = with_models(store, second)
    assert list(failed) == ["bad"] and "expected" in failed["bad"]
    assert loaded == [("both", 2)]
    assert [(e.name, e.state) for e in index] == [("bad", "UNAVAILABLE"), ("both", "READY")]
    assert index[0].reason == failed["bad"]


def test_subscribers_hear_of_every_change(store, both):
    async def work(models):
        heard = []
        models.subscribe(lambda name, ready: heard.append((name, ready)))
        model = await models.load("both")
        os.kill(model.worker_pids()[0], signal.SIGKILL)
        await until(lambda: heard[-1] == ("both", False))
        await until(lambda: heard[-1] == ("both", True))
        await models.load("both", instances=2)
        await until(lambda: model.state == "UNAVAILABLE")
        assert heard[-1] == ("both", True)  # the end of the one that was replaced is not told
        await models.unload("both")
        return heard

    heard = with_models(store, work)
    assert heard[0] == ("both", False) and heard[-1] == ("both", False)


def test_a_bundle_is_in_use_while_it_loads(store, both):
    async def work(models):
        load = asyncio.ensure_future(models.load("both"))
        await until(lambda: models.in_use(both.digest) == ["both"])
        state = entry_of(models, "both").state
        with pytest.raises(Refused, match="is being loaded") as caught:
            models.find("both")
        await load
        return state, caught.value.code

    assert with_models(store, work) == ("LOADING", CODE.UNAVAILABLE)


def test_two_loads_at_once_load_once(store, both):
    async def work(models):
        first, second = await asyncio.gather(models.load("both"), models.load("both"))
        return first is second, len(models.loaded())

    assert with_models(store, work) == (True, 1)


def test_a_cancelled_load_leaves_nothing(store, both):
    async def work(models):
        load = asyncio.ensure_future(models.load("both"))
        await until(lambda: models.in_use(both.digest))
        await asyncio.sleep(0.05)
        load.cancel()
        await asyncio.wait([load])
        assert models.in_use(both.digest) == []
        return (await models.load("both")).state

    assert with_models(store, work) == "READY"


def test_closing_gives_a_grace_and_no_more(make_bundle, store, tmp_path):
    artifact = counting(tmp_path / "count.onnx")
    store.add(bundle_with(make_bundle("onnx"), artifact), "m")

    async def work():
        models = Models(store)
        model = await models.load("m")
        x = np.full((1, 1), 1e5, np.float32)
        soon = asyncio.ensure_future(model.infer([x]))
        never = asyncio.ensure_future(model.infer([np.full((1, 1), FOREVER, np.float32)]))
        await asyncio.sleep(0)
        pids = model.worker_pids()
        await models.close(2.0)
        code, _ = await refusal(models.load("m"))
        done = await asyncio.gather(soon, never, return_exceptions=True)
        return pids, code, done[0].outputs[0].item(), done[1].code

    pids, code, y, left = run(work())
    assert code == left == CODE.UNAVAILABLE and y == 1e5 and all(gone(pid) for pid in pids)


def test_closing_while_it_loads(store, both):
    async def work():
        models = Models(store)
        load = asyncio.ensure_future(models.load("both"))
        await until(lambda: models.in_use(both.digest))
        await asyncio.sleep(0.05)
        await models.close(0.0)
        return await refusal(load)

    code, _ = run(work())
    assert code == CODE.UNAVAILABLE

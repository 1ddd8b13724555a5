"""The nine calls of the Open Inference Protocol over a real server, store and engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import infer_request
from server_tools import calls_of, refusal, run, served, until

from runtime.digest import sha256_tree
from runtime.environment import edgevit_version
from runtime.serving.model import ModelSettings
from runtime.serving.models import Models
from runtime.serving.services.inference import InferenceService
from runtime.serving.storage.store import Store
from runtime.wire.descriptors import INFERENCE
from runtime.wire.tensors import read_outputs

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
TIMES = ("queue_us", "decode_us", "compute_us", "encode_us")


@dataclass
class Notes:
    """An observer that writes down."""

    requests: list[tuple[Any, ...]] = field(default_factory=list)
    batches: int = 0

    def request(self, *told: Any) -> None:
        self.requests.append(told)

    def batch(self, model: str, size: int) -> None:
        self.batches += 1

    def restart(self, model: str, reason: str) -> None:
        raise AssertionError(f"{model} restarted: {reason}")


@dataclass
class Serving:
    """The service, and how to ask it."""

    ask: Callable[..., Any]
    models: Models
    notes: Notes
    service: InferenceService
    up: dict[str, bool]


@pytest.fixture
def store(tmp_path: Path, make_bundle: Any) -> Any:
    def label(manifest: dict[str, Any]) -> None:
        manifest["labels"] = "labels.txt"

    bundle = make_bundle("tflite", "onnx", change=label)
    (bundle / "labels.txt").write_text("\n".join(f"class {number}" for number in range(7)))
    opened = Store.open(tmp_path / "store")
    opened.add(bundle, "tiny")
    yield opened
    opened.close()


@asynccontextmanager
async def serving(store: Store, *load: str, **settings: Any) -> AsyncIterator[Serving]:
    notes, up = Notes(), {"ready": False}
    models = Models(store, ModelSettings(**({"isolate": False} | settings)), notes)
    service = InferenceService(models, notes, lambda: up["ready"])
    try:
        for name in load:
            await models.load(name)
        async with served({INFERENCE: service}) as channel:
            yield Serving(calls_of(channel, INFERENCE), models, notes, service, up)
    finally:
        await models.close(5)


def infer(up: Serving, tiny: Any, model: str = "tiny", picture: int = 0, **fields: Any) -> Any:
    target = model.partition("/")[2] or "tflite"
    spec = up.models.find(model).inputs[0]
    x = tiny.input_for(target, picture)
    return up.ask("ModelInfer", infer_request(model, spec.name, x, **fields))


def test_the_server(store):
    async def work() -> None:
        async with serving(store) as up:
            assert (await up.ask("ServerLive")).live
            assert not (await up.ask("ServerReady")).ready
            up.up["ready"] = True
            assert (await up.ask("ServerReady")).ready
            told = await up.ask("ServerMetadata")
            assert (told.name, told.version) == ("edgevit", edgevit_version())
            assert list(told.extensions) == ["model_repository"]

    run(work())


def test_the_metadata_of_a_model(store):
    found = store.find("tiny")

    async def work() -> None:
        async with serving(store, "tiny") as up:
            told = await up.ask("ModelMetadata", name="tiny", version=found.digest[:12])
            assert told.name == "tiny" and list(told.versions) == [found.digest[:12]]
            assert told.platform == "edgevit_litert"
            (x,), (y,) = told.inputs, told.outputs
            assert (x.datatype, list(x.shape)) == ("FP32", [1, 32, 32, 3])
            assert (y.datatype, list(y.shape)) == ("FP32", [1, 7])
            manifest = found.bundle.manifest
            properties = dict(told.properties)
            assert json.loads(properties.pop("preprocessing")) == (
                manifest.preprocessing.model_dump(mode="json")
            )
            assert json.loads(properties.pop("labels")) == [f"class {n}" for n in range(7)]
            assert properties == {
                "model": "tiny", "target": "tflite", "precision": "fp32", "trained": "false",
                "bundle_digest": sha256_tree(found.path),
            }  # fmt: skip

    run(work())


@pytest.mark.parametrize("isolate", [True, False])
def test_every_picture_is_answered_as_torch_does(store, tiny, isolate):
    async def work() -> None:
        async with serving(store, "tiny", "tiny/onnx", isolate=isolate) as up:
            for model in ("tiny", "tiny/onnx"):
                for picture, want in enumerate(tiny.outputs_NK):
                    answer = await infer(up, tiny, model, picture)
                    (got,) = read_outputs(answer).values()
                    np.testing.assert_allclose(got, want[None], atol=1e-5)
                    assert answer.model_name == model

    run(work())


def test_the_answer_tells_where_the_time_went(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny/onnx") as up:
            answer = await infer(up, tiny, "tiny/onnx", id="7b")
            assert answer.id == "7b" and answer.model_version == store.find("tiny").digest[:12]
            told = answer.parameters
            assert set(told) == {*TIMES, "total_us", "batch_size", "engine", "target",
                                 "bundle_digest"}  # fmt: skip
            parts = [told[name].int64_param for name in TIMES]
            assert min(parts) >= 0 and told["compute_us"].int64_param > 0
            assert sum(parts) <= told["total_us"].int64_param + len(parts)  # each is rounded
            assert told["batch_size"].int64_param == 1
            assert told["engine"].string_param == "onnxruntime"
            assert told["target"].string_param == "onnx"
            assert told["bundle_digest"].string_param == store.find("tiny").digest

    run(work())


def test_many_at_once_are_each_answered_with_their_own(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny", instances=2) as up:
            answers = await asyncio.gather(*(infer(up, tiny, picture=n % 4) for n in range(40)))
            for number, answer in enumerate(answers):
                (got,) = read_outputs(answer).values()
                np.testing.assert_allclose(got[0], tiny.outputs_NK[number % 4], atol=1e-5)
            assert up.service.answered == 40

    run(work())


def test_outputs_by_name(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny") as up:
            model = up.models.find("tiny")
            request = infer_request("tiny", model.inputs[0].name, tiny.input_for("tflite"))
            request.outputs.add(name=model.outputs[0].name)
            assert len((await up.ask("ModelInfer", request)).outputs) == 1
            request.outputs.add(name="features")
            code, text = await refusal(up.ask("ModelInfer", request))
            assert code is INVALID and "'features'" in text and model.outputs[0].name in text

    run(work())


def test_models_that_are_not_there(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny") as up:
            name = up.models.find("tiny").inputs[0].name
            x = tiny.input_for("tflite")
            for call in (
                up.ask("ModelInfer", infer_request("tinny", name, x)),
                up.ask("ModelMetadata", name="tinny"),
                up.ask("RepositoryModelLoad", model_name="tinny"),
                up.ask("RepositoryModelUnload", model_name="tinny"),
            ):
                code, text = await refusal(call)
                assert code is NOT_FOUND and "'tiny'" in text
            version = up.models.find("tiny").version
            code, text = await refusal(
                up.ask("ModelInfer", infer_request("tiny", name, x, model_version="1"))
            )
            assert code is NOT_FOUND and version in text
            assert not (await up.ask("ModelReady", name="tinny")).ready
            assert not (await up.ask("ModelReady", name="tiny", version="1")).ready
            assert (await up.ask("ModelReady", name="tiny", version=version)).ready
            assert not (await up.ask("ModelReady", name="tiny/onnx")).ready
            code, _ = await refusal(up.ask("ModelInfer", infer_request("tiny/onnx", name, x)))
            assert code is grpc.StatusCode.FAILED_PRECONDITION

    run(work())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("request", "sequence_id"), ("request", "sequence_start"),
        ("input", "shared_memory_region"), ("output", "shared_memory_region"),
        ("output", "classification"),
    ],
)  # fmt: skip
def test_parameters_that_would_be_answered_wrongly(store, tiny, place, name):
    async def work() -> None:
        async with serving(store, "tiny") as up:
            model = up.models.find("tiny")
            request = infer_request("tiny", model.inputs[0].name, tiny.input_for("tflite"))
            request.outputs.add(name=model.outputs[0].name)
            request.parameters["priority"].uint64_param = 1
            request.parameters["timeout"].int64_param = 1_000_000
            assert (await up.ask("ModelInfer", request)).outputs
            parts = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}
            parts[place].parameters[name].string_param = "x"
            code, text = await refusal(up.ask("ModelInfer", request))
            assert code is INVALID and name in text

    run(work())


async def index(up: Serving, **fields: Any) -> dict[str, str]:
    return {m.name: m.state for m in (await up.ask("RepositoryIndex", **fields)).models}


def test_load_and_unload(store, tiny):
    async def work() -> None:
        async with serving(store) as up:
            assert await index(up) == {"tiny": "UNAVAILABLE"}
            assert await index(up, ready=True) == {}
            for name, settings in (("tiny", {}), ("tiny/onnx", {"threads": {"int64_param": 2}})):
                await up.ask("RepositoryModelLoad", model_name=name, parameters=settings)
            assert await index(up) == {"tiny": "READY", "tiny/onnx": "READY"}
            threads = {entry.name: entry.threads for entry in up.models.index()}
            assert threads == {"tiny": 1, "tiny/onnx": 2}
            await infer(up, tiny, "tiny/onnx")
            dependents = {"unload_dependents": {"bool_param": False}}  # as stock clients say
            await up.ask("RepositoryModelUnload", model_name="tiny", parameters=dependents)
            assert await index(up, ready=True) == {"tiny/onnx": "READY"}
            assert not (await up.ask("ModelReady", name="tiny")).ready
            await up.ask("RepositoryModelLoad", model_name="tiny")
            await infer(up, tiny)

    run(work())


def test_load_parameters(store):
    good = [({"int64_param": 2}, 2), ({"string_param": "3"}, 3)]
    bad = [
        {"int64_param": 0}, {"int64_param": -1}, {"int64_param": 2000}, {"string_param": "many"},
        {"string_param": "-1"}, {"string_param": ""}, {"string_param": "9" * 5000},
        {"bool_param": True}, {"bytes_param": b"2"}, {},
    ]  # fmt: skip

    async def work() -> None:
        async with serving(store) as up:

            async def refused(name: str, value: dict[str, Any]) -> str:
                code, text = await refusal(
                    up.ask("RepositoryModelLoad", model_name="tiny", parameters={name: value})
                )
                assert code is INVALID and len(text) < 400
                return text

            for value, number in good:
                await up.ask(
                    "RepositoryModelLoad", model_name="tiny", parameters={"threads": value}
                )
                assert up.models.find("tiny").settings.threads == number
            for value in bad:
                assert "'instances': expected a whole number" in await refused("instances", value)
            assert "threads, instances, got 'thread'" in await refused("thread", good[0][0])
            assert "NAME/TARGET" in await refused("config", {"string_param": "{}"})
            assert "upload" in await refused("file:1/model.onnx", {"bytes_param": b"x"})
            assert up.models.find("tiny").settings.threads == 3  # as it was

    run(work())


@pytest.mark.parametrize("call", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_an_agent_has_one_repository(store, call):
    async def work() -> None:
        async with serving(store) as up:
            fields = {"repository_name": "other", "model_name": "tiny"}
            for code, text in [
                await refusal(up.ask(call, **fields)),
                await refusal(up.ask("RepositoryIndex", repository_name="other")),
            ]:
                assert code is INVALID and "'other'" in text
            wrong = {"call": {"bool_param": True}, "unload": {"bool_param": True}}
            code, text = await refusal(up.ask(call, model_name="tiny", parameters=wrong))
            assert code is INVALID and "parameters" in text

    run(work())


def test_the_observer_is_told_of_every_request_of_a_loaded_model(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny") as up:
            await infer(up, tiny)
            await refusal(up.ask("ModelInfer", infer_request("tiny", "no", np.zeros(1, "f4"))))
            await refusal(up.ask("ModelInfer", infer_request("tinny", "no", np.zeros(1, "f4"))))
            right, wrong = up.notes.requests
            assert right[:3] == ("tiny", "tflite", "OK")
            assert 0 < right[3].compute_us <= right[4] + 1
            assert wrong[:4] == ("tiny", "tflite", "INVALID_ARGUMENT", None)

    run(work())


def test_callers_that_go_away_leave_the_queue(store, tiny):
    """While the engine is stopped: one request is in it, the others wait."""

    async def work() -> None:
        async with serving(store, "tiny", isolate=True) as up:
            model = up.models.find("tiny")
            (engine,) = model.worker_pids()
            os.kill(engine, signal.SIGSTOP)
            try:
                calls = [infer(up, tiny)]
                await until(lambda: up.notes.batches == 1)  # it is in the engine
                calls += [infer(up, tiny, picture=n % 4) for n in range(1, 10)]
                await until(lambda: model.queued == 9)
                for call in calls[5:]:
                    call.cancel()
                await until(lambda: model.queued == 4)
            finally:
                os.kill(engine, signal.SIGCONT)
            for number, answer in enumerate(await asyncio.gather(*calls[:5])):
                (got,) = read_outputs(answer).values()
                np.testing.assert_allclose(got[0], tiny.outputs_NK[number % 4], atol=1e-5)
            ended = Counter(told[2] for told in up.notes.requests)
            assert ended == {"OK": 5, "CANCELLED": 5}

    run(work())


def test_a_deadline_ends_the_wait_and_a_full_queue_refuses(store, tiny):
    async def work() -> None:
        async with serving(store, "tiny", isolate=True, queue=3) as up:
            model = up.models.find("tiny")
            request = infer_request("tiny", model.inputs[0].name, tiny.input_for("tflite"))
            (engine,) = model.worker_pids()
            os.kill(engine, signal.SIGSTOP)
            try:
                calls = [up.ask("ModelInfer", request) for _ in range(3)]
                await until(lambda: model.queued == 2)
                late = up.ask("ModelInfer", request, timeout=2.0)
                await until(lambda: model.queued == 3)
                code, text = await refusal(up.ask("ModelInfer", request))
                assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "wait already" in text
                assert (await refusal(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
                await until(lambda: model.queued == 2)
            finally:
                os.kill(engine, signal.SIGCONT)
            assert len(await asyncio.gather(*calls)) == 3

    run(work())

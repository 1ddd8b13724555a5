"""The clients against real gRPC servers: every call, both ways; retries, threads, uploads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cli_tools import ROOT
from small_agent import Doubles, Shelf, serving, small_bundle, small_services

from runtime.client import Access, AgentClient, AgentFault, AsyncAgentClient
from runtime.client import calls as client_calls
from runtime.digest import sha256_tree
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import DEVICE, INFERENCE, message
from runtime.wire.refused import Refused, unavailable

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@dataclass
class Stand:
    """A running server and what stands behind it."""

    address: str
    inference: Doubles
    device: Shelf


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    services = small_services(tmp_path / "shelf")
    with serving(services) as address:
        yield Stand(address, services[INFERENCE], services[DEVICE])


class _Waited:
    """AsyncAgentClient with blocking calls, so that one test asks both clients the same."""

    def __init__(self, access: Access | str) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncAgentClient:
            return AsyncAgentClient(access)

        self._client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)
        return lambda *a, **k: self._loop.run_until_complete(function(*a, **k))

    def __enter__(self) -> _Waited:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[AgentClient, _Waited], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(client_calls, "BACK_OFF_S", 0.01)
    return request.param


@pytest.fixture
def agent(kind: Any, stand: Stand) -> Iterator[Any]:
    with kind(stand.address) as client:
        yield client


def test_every_unary_call(agent, stand):
    assert agent.live() is True and agent.ready() is True
    assert agent.metadata().extensions == ["model_repository"]
    assert agent.health() == "SERVING" and agent.health("double") == "SERVING"
    assert agent.model_ready("double") is True and agent.model_ready("other") is False
    found = agent.model_metadata("double")
    assert (found.platform, found.versions, found.properties) == (
        "small",
        ["1"],
        {"trained": "true"},
    )
    (spec,) = found.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("x", [-1, 4], "float32")
    assert [s.name for s in found.outputs] == ["y"]
    assert [(m.name, m.state, m.reason) for m in agent.index()] == [
        ("double", "READY", ""),
        ("broken", "UNAVAILABLE", "its engine is not here"),
    ]
    assert [m.name for m in agent.index(ready_only=True)] == ["double"]
    agent.load("double/tflite", threads=2)
    assert stand.inference.loaded == {"double/tflite": {"threads": 2}}
    agent.load("double", threads=1, instances=3)
    assert stand.inference.loaded["double"] == {"threads": 1, "instances": 3}
    agent.unload("double")
    assert list(stand.inference.loaded) == ["double/tflite"]


def test_infer_by_array_and_by_name(agent, stand):
    result = agent.infer("double", X)
    np.testing.assert_array_equal(result.output, 2 * X)
    assert (result.model, result.version) == ("double", "1")
    assert result.timings == {"queue_us": 5, "compute_us": 70}
    assert result.parameters == {"batch_size": 2, "engine": "none"}
    again = agent.infer("double", {"x": X + 1}, version="1")
    np.testing.assert_array_equal(again.outputs["y"], 2 * X + 2)
    agent.infer("double", X)
    assert stand.inference.seen.count("ModelMetadata") == 1, "the input's name is remembered"


def test_an_input_that_is_called_otherwise_after_a_swap(agent, stand):
    agent.infer("double", X)
    stand.inference.input = "pixels"
    with pytest.raises(AgentFault, match="expected the inputs"):
        agent.infer("double", X)
    np.testing.assert_array_equal(agent.infer("double", X).output, 2 * X)


def test_describe(agent):
    device = agent.describe()
    assert (device.edgevit_version, device.device_id, device.generation) == ("1.2.3", "an-id", 7)
    assert device.environment.cores_logical and device.memory_total == 1000
    assert device.temperature_c is None, "what is not told is not zero"
    assert [(e.name, e.available) for e in device.engines] == [("litert", True)]
    assert device.bundles[0].names == ["a", "b"] and device.bundles[0].targets == ["tflite"]
    assert device.limits.message_bytes == 8 << 20


def test_the_token_travels_and_is_not_shown(kind, stand):
    access = Access(stand.address, token="s3cret-word")
    with kind(access) as client:
        client.live()
    assert ("authorization", "Bearer s3cret-word") in stand.inference.metadata
    assert "s3cret" not in repr(access)


@pytest.mark.parametrize("payload", [4, 1_000_000], ids=["small", "larger than gRPC's buffer"])
def test_infer_is_tried_again_where_the_agent_was_away(agent, stand, payload):
    x = np.ones((payload // 4, 4), np.float32)
    stand.inference.failures = [unavailable("the engine starts again")] * 2
    np.testing.assert_array_equal(agent.infer("double", {"x": x}).output, 2 * x)
    assert stand.inference.seen.count("ModelInfer") == 3


def test_what_changes_the_agent_is_not_tried_again(agent, stand):
    stand.inference.failures = [unavailable("not now")]
    with pytest.raises(AgentFault, match="cannot answer now: not now") as caught:
        agent.load("double")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert stand.inference.seen == ["RepositoryModelLoad"] and stand.inference.loaded == {}


def test_other_refusals_are_not_tried_again(agent, stand):
    full = Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue of 'double' is full (64)")
    stand.inference.failures = [full]
    with pytest.raises(AgentFault, match=r"no room now: the queue of 'double' is full \(64\)"):
        agent.infer("double", {"x": X})
    assert stand.inference.seen == ["ModelInfer"]


def test_a_deadline_of_one_call(agent, stand):
    with pytest.raises(AgentFault, match=r"no answer to ModelInfer within 0\.5 s") as caught:
        agent.infer("wait", {"x": X}, timeout_s=0.5)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stand.inference.cancelled.wait(10), "the server knows that nobody waits any more"
    assert agent.live(), "the connection serves on"


def test_one_deadline_for_the_metadata_and_the_inference():
    """A bare array asks for the metadata first; what that takes is gone from the inference."""
    plan = client_calls.infer("double", X, "", 60.0, {})
    assert next(plan).timeout_s == 60
    time.sleep(0.1)
    answer = message("inference.ModelMetadataResponse")()
    answer.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
    step = plan.send(answer)
    assert step.timeout_s <= 59.9 and step.given_s == 60


def test_one_client_in_many_threads(stand):
    def work(number: int) -> bool:
        x = np.full((1, 4), number, np.float32)
        return all(float(client.infer("double", x).output[0, 0]) == 2 * number for _ in range(20))

    with AgentClient(stand.address) as client, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(32)))


FIRST_USE = """
import sys, threading
from runtime.wire.descriptors import DEVICE, message, methods
sys.setswitchinterval(1e-6)
start, wrong = threading.Barrier(16), []
def work():
    start.wait()
    try:
        methods(DEVICE)["UploadBundle"].request(header=message("edgevit.v1.UploadHeader")())
    except TypeError as error:
        wrong.append(error)
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(str(wrong[0]) if wrong else 0)
"""


def test_threads_that_use_the_wire_first_at_the_same_time():
    """Each of them once made message classes of its own, which took no other's messages."""
    for _ in range(4):
        words = [sys.executable, "-c", FIRST_USE]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_many_calls_of_one_asyncio_client(stand):
    async def run() -> list[float]:
        async with AsyncAgentClient(stand.address) as client:
            xs = [np.full((1, 4), i, np.float32) for i in range(200)]
            found = await asyncio.gather(*(client.infer("double", x) for x in xs))
        return [float(result.output[0, 3]) for result in found]

    assert asyncio.run(run()) == [2.0 * i for i in range(200)]


def test_cancelling_an_asyncio_call_reaches_the_server(stand):
    async def run() -> None:
        async with AsyncAgentClient(stand.address) as client:
            task = asyncio.create_task(client.infer("wait", {"x": X}))
            assert await asyncio.to_thread(stand.inference.waiting.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.live()

    asyncio.run(run())
    assert stand.inference.cancelled.wait(10)


def test_a_client_comes_back_with_its_server(kind, tmp_path):
    with serving(small_services(tmp_path)) as address:
        port = int(address.rpartition(":")[2])
        with kind(address) as client:
            assert client.live()
    with kind(address) as client:
        with pytest.raises(AgentFault, match="nothing listens at"):
            client.live()
        with serving(small_services(tmp_path), port=port):
            end = time.monotonic() + 20
            while True:
                try:
                    assert client.live()
                    break
                except AgentFault:
                    assert time.monotonic() < end


def test_upload_sends_everything_once(agent, stand, tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    seen: list[tuple[int, int]] = []
    digest = agent.upload(bundle, "mine", lambda done, total: seen.append((done, total)))
    assert digest == sha256_tree(bundle) == sha256_tree(stand.device.folder / digest)
    assert stand.device.names[digest] == {"mine"}
    total = stand.device.uploads[0]
    assert seen[0] == (0, total) and seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert agent.upload(bundle, "mine") == agent.upload(bundle) == digest
    assert len(stand.device.uploads) == 1, "what is there is not sent again"
    assert agent.upload_status(digest).complete
    agent.upload(bundle, "other")
    assert stand.device.uploads == [total, 0], "another name takes a header alone"
    assert stand.device.names[digest] == {"mine", "other"}


def test_upload_goes_on_after_a_cut(agent, stand, tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    stand.device.cuts = [2, 0, 1]
    digest = agent.upload(bundle)
    assert sha256_tree(stand.device.folder / digest) == digest
    sizes = [f.stat().st_size for f in bundle.rglob("*") if f.is_file()]
    assert len(stand.device.uploads) == 4 and sum(stand.device.uploads) == sum(sizes)


def test_upload_gives_up_when_nothing_comes_over(agent, stand, tmp_path):
    stand.device.cuts = [0] * 20
    with pytest.raises(AgentFault, match="the network went away") as caught:
        agent.upload(small_bundle(tmp_path / "bundle"))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(stand.device.uploads) == 1 + client_calls.RESUMES


def test_upload_ends_with_its_time(agent, stand, tmp_path, monkeypatch):
    """timeout_s is for all of it: the tries, and the pauses between them."""
    monkeypatch.setattr(client_calls, "BACK_OFF_S", 5.0)
    stand.device.cuts = [1]
    with pytest.raises(AgentFault, match=r"no answer to Upload.* within 2 s") as caught:
        agent.upload(small_bundle(tmp_path / "bundle"), timeout_s=2)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(stand.device.uploads) <= 1 and not stand.device.whole


def test_upload_to_nobody_does_not_wait(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(client_calls, "BACK_OFF_S", 60.0)
    with kind("127.0.0.1:1") as client, pytest.raises(AgentFault, match="nothing listens at"):
        client.upload(small_bundle(tmp_path / "bundle"))


def test_upload_of_a_file_that_changes_on_the_way(agent, stand, tmp_path):
    bundle = small_bundle(tmp_path / "bundle")

    def spoil(done: int, total: int) -> None:
        (bundle / "weights" / "a.bin").write_bytes(b"short")

    with pytest.raises(RuntimeFault, match="became shorter while it was sent"):
        agent.upload(bundle, None, spoil)
    assert agent.live()


def test_upload_of_no_bundle(agent, tmp_path):
    with pytest.raises(RuntimeFault, match=r"has no manifest\.json"):
        agent.upload(tmp_path)


def test_an_error_of_the_progress_callback_is_the_callers(agent, tmp_path):
    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        agent.upload(small_bundle(tmp_path / "bundle"), None, broken)


def test_profile_tells_its_progress_and_wants_a_result(agent, stand):
    part = message("edgevit.v1.ProfileResponse")
    stand.device.profile = [
        part(progress={"message": "warm up", "fraction": 0.25}),
        part(progress={"message": "block 1", "fraction": 0.5}),
    ]
    seen: list[tuple[str, float]] = []
    with pytest.raises(RuntimeFault, match="ended the profile without a result"):
        agent.profile(
            "b", ["onnx"], threads=2, runs=7, per_op=True,
            progress=lambda text, done: seen.append((text, done)),
        )  # fmt: skip
    assert seen == [("warm up", 0.25), ("block 1", 0.5)]
    (asked,) = stand.device.asked
    assert (asked.bundle, list(asked.targets), asked.threads, asked.runs, asked.per_op) == (
        "b", ["onnx"], 2, 7, True,
    )  # fmt: skip
    assert (asked.min_time_s, asked.max_time_s) == (1.0, 120.0)
    stand.device.profile = [part(run_json='{"kind": "edgevit-run", "schema_version": 99}')]
    with pytest.raises(RuntimeFault, match="it was made by a newer edgevit"):
        agent.profile("b")
    stand.device.profile = [part(run_json="[1]")]
    with pytest.raises(RuntimeFault, match="is not a run file"):
        agent.profile("b")


def test_leaving_a_profile_cancels_it(tmp_path):
    class Endless(Shelf):
        async def Profile(self, request: Any, context: Any) -> Any:
            part = message("edgevit.v1.ProfileResponse")
            yield part(progress={"message": "one", "fraction": 0.1})
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    def stop(text: str, done: float) -> None:
        raise KeyboardInterrupt

    cancelled = threading.Event()
    services = small_services(tmp_path) | {DEVICE: Endless(tmp_path)}
    with serving(services) as address, AgentClient(address) as client:
        with pytest.raises(KeyboardInterrupt):
            client.profile("b", progress=stop)
        assert cancelled.wait(10), "the server knows that nobody waits any more"
        assert client.live()


def test_closing_ends_a_call_that_is_under_way(stand):
    client = AgentClient(stand.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.infer, "wait", {"x": X})
        assert stand.inference.waiting.wait(10)
        client.close()
        with pytest.raises(AgentFault, match="was cancelled before it was answered") as caught:
            call.result(10)
    assert caught.value.code is grpc.StatusCode.CANCELLED


def test_closing_ends_an_asyncio_call_that_is_under_way(stand):
    """It is the call that ends so, not the task that waits for it."""

    async def run() -> None:
        client = AsyncAgentClient(stand.address)
        task = asyncio.create_task(client.infer("wait", {"x": X}))
        assert await asyncio.to_thread(stand.inference.waiting.wait, 10)
        await client.close()
        with pytest.raises(AgentFault, match="was cancelled before it was answered") as caught:
            await task
        assert caught.value.code is grpc.StatusCode.CANCELLED

    asyncio.run(run())


def test_a_call_after_close(kind, stand, tmp_path):
    with kind(stand.address) as client:
        client.close()
        client.close()
        for ask in (
            client.live,
            lambda: client.profile("b"),
            lambda: client.upload(small_bundle(tmp_path / "bundle")),
        ):
            with pytest.raises(RuntimeFault, match=r"this client of 127\.0\.0\.1:\d+ is closed"):
                ask()


def test_no_thread_of_ours_stays(stand):
    before = threading.active_count()
    for _ in range(5):
        with AgentClient(stand.address) as client:
            client.live()
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"address": "raspberry"},
            "expected the address of an agent as HOST:PORT, got 'raspberry'",
        ),
        ({"address": "pi:0"}, "HOST:PORT, got 'pi:0'"),
        ({"address": "pi:\u0661"}, "HOST:PORT, got 'pi:\u0661'"),
        ({"address": "unix:"}, "HOST:PORT, got 'unix:'"),
        ({"address": "unix://"}, "HOST:PORT, got 'unix://'"),
        ({"address": "pi:99999"}, "HOST:PORT, got 'pi:99999'"),
        ({"address": "http://pi:80"}, "HOST:PORT, got 'http://pi:80'"),
        ({"address": "::1:80"}, "HOST:PORT, got '::1:80'"),
        ({"tls_cert": Path("c.pem")}, "a client certificate needs its key too"),
        ({"tls_key": Path("c.key")}, "a client key needs its certificate too"),
        ({"server_name": "pi"}, "the server name 'pi' is checked with TLS only"),
        ({"token": "two words"}, "a token is one word of printable ASCII"),
        ({"token": ""}, "a token is one word of printable ASCII"),
    ],
)
def test_an_access_that_cannot_be_right(values, said):
    with pytest.raises(RuntimeFault) as caught:
        Access(**{"address": "pi:1", **values})
    assert said in str(caught.value)


@pytest.mark.parametrize("address", ["pi:1", "10.0.0.7:65535", "[::1]:80", "unix:/run/agent"])
def test_addresses(address):
    assert Access(address).address == address and not Access(address).secure

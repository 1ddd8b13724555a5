"""10,000 requests that no client would send: none breaks the agent, none leaves anything behind."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from agent_tools import (
    Agent,
    ask,
    channel_to,
    eventually,
    infer_request,
    input_name,
    running_agent,
    upload_parts,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.digest import sha256_tree
from runtime.wire.descriptors import DEVICE, INFERENCE, methods
from runtime.wire.service import call
from runtime.wire.tensors import DATATYPES, read_outputs

pytestmark = pytest.mark.slow

FIELDS = 3900  # requests made field by field
BYTES = 6000  # requests whose bytes were changed
UPLOADS = 100
AT_ONCE = 32
CODES = {
    grpc.StatusCode.OK,  # some changes change nothing that matters
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.ABORTED,
}

words = st.one_of(
    st.sampled_from(["", "tiny", "tiny/tflite", "tiny/", "../tiny", "/", "\0", "nan"]), st.text()
)
sizes = st.one_of(
    st.sampled_from([0, 1, 3, 32, -1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1]),
    st.integers(0, 64),
)
values = st.lists(st.integers(0, 255), max_size=8)
parameter = st.one_of(
    st.just({}),
    st.builds(lambda v: {"int64_param": v}, st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda v: {"string_param": v}, words),
    st.builds(lambda v: {"bool_param": v}, st.booleans()),
)
parameters = st.dictionaries(
    st.one_of(st.sampled_from(["threads", "instances", "timeout"]), words), parameter, max_size=2
)


def contents_of(draw: Any) -> dict[str, Any]:
    field = draw(
        st.sampled_from(
            ["fp32_contents", "fp64_contents", "int_contents", "uint_contents", "int64_contents",
             "uint64_contents", "bool_contents", "bytes_contents"]
        )
    )  # fmt: skip
    if field == "bytes_contents":
        return {field: draw(st.lists(st.binary(max_size=9), max_size=3))}
    if field == "bool_contents":
        return {field: draw(st.lists(st.booleans(), max_size=9))}
    return {field: draw(values)}


@st.composite
def infer_fields(draw: Any, known: str) -> dict[str, Any]:
    """Fields of a ModelInferRequest, each now and then the right one."""
    names = st.one_of(st.just(known), words)
    inputs = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2, 5]))):
        tensor = {
            "name": draw(names),
            "datatype": draw(st.one_of(st.sampled_from([*DATATYPES, "BYTES", "BF16"]), words)),
            "shape": draw(st.one_of(st.just([1, 32, 32, 3]), st.lists(sizes, max_size=6))),
            "parameters": draw(parameters),
        }
        if draw(st.booleans()):
            tensor["contents"] = contents_of(draw)
        inputs.append(tensor)
    size = st.sampled_from([0, 1, 12, 12288, 12287, 12289])
    raw = draw(st.lists(size, max_size=3))
    return {
        "model_name": draw(st.one_of(st.just("tiny"), words)),
        "model_version": draw(st.one_of(st.just(""), words)),
        "id": draw(words),
        "parameters": draw(parameters),
        "inputs": inputs,
        "outputs": [{"name": name} for name in draw(st.lists(words, max_size=2))],
        "raw_input_contents": [bytes(n) for n in raw],
    }


@st.composite
def calls(draw: Any, known: str) -> tuple[str, str, dict[str, Any]]:
    """A service, one of its unary calls, and fields of its request."""
    other = st.sampled_from(
        [
            (INFERENCE, "ModelReady", {"name": words, "version": words}),
            (INFERENCE, "ModelMetadata", {"name": words, "version": words}),
            (INFERENCE, "RepositoryIndex", {"repository_name": words, "ready": st.booleans()}),
            (DEVICE, "UploadStatus", {"digest": words}),
            (DEVICE, "Remove", {"bundle": words.filter(lambda w: w != "tiny")}),
        ]
    )
    if draw(st.integers(0, 3)):
        return INFERENCE, "ModelInfer", draw(infer_fields(known))
    service, name, fields = draw(other)
    return service, name, {field: draw(strategy) for field, strategy in fields.items()}


@pytest.fixture(scope="module")
def agent(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    store = tmp_path_factory.mktemp("malformed") / "store"
    flags = ["--metrics", "127.0.0.1:0", "--log-level", "error"]
    with running_agent(store, *flags, load=[tiny_bundle]) as agent:
        yield agent


@pytest.fixture(scope="module")
def channel(agent: Agent) -> Iterator[Any]:
    with channel_to(agent.address) as channel:
        yield channel


@pytest.fixture
def another(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that the agent does not have."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "another"))
    (bundle / "notes.txt").write_text("not in the store")
    return bundle


@pytest.fixture
def unharmed(agent: Agent, channel: Any, tiny: Any) -> Iterator[None]:
    """Before and after: a good request is answered, nothing waits, nothing is held."""
    request = infer_request("tiny", input_name(channel, "tiny"), tiny.input_for("tflite"))

    def check() -> None:
        for _ in range(20):
            (output,) = read_outputs(ask(channel, "ModelInfer", request)).values()
            np.testing.assert_allclose(output[0], tiny.outputs_NK[0], atol=1e-5)

    check()
    process, engines = psutil.Process(agent.pid), [e.pid for e in agent.engines()]
    files, threads = process.num_fds(), process.num_threads()
    memory = process.memory_info().rss
    yield
    check()
    assert [e.pid for e in agent.engines()] == engines, "an engine process was lost"
    described = ask(channel, "Describe", of=DEVICE)
    assert all(model.queued == 0 for model in described.models)
    eventually(lambda: agent.sample("edgevit_queue_depth") == 0)
    eventually(lambda: process.num_fds() <= files + 2)
    assert process.num_threads() <= threads + 16  # gRPC's own pool grows and shrinks
    assert process.memory_info().rss < memory + 64 * 2**20
    assert "a call failed inside" not in agent.stderr()


def told(error: Any, what: object) -> grpc.StatusCode:
    """The status of an answer; one that no request may have fails the test."""
    code = grpc.StatusCode.OK if error is None else error.code()
    assert code in CODES, (code, error.details(), str(what)[:2000])
    return code


def test_requests_made_field_by_field(agent: Agent, channel: Any, unharmed: None) -> None:
    known = input_name(channel, "tiny")
    seen: Counter[grpc.StatusCode] = Counter()

    @settings(
        max_examples=FIELDS, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(calls(known))
    def send(made: tuple[str, str, dict[str, Any]]) -> None:
        service, name, fields = made
        try:
            ask(channel, name, of=service, **fields)
            error = None
        except grpc.RpcError as refused:
            error = refused
        seen[told(error, made)] += 1

    send()
    assert seen.total() >= FIELDS * 9 // 10 and len(seen) >= 3, seen


def test_requests_with_changed_bytes(
    agent: Agent, channel: Any, tiny: Any, another: Path, unharmed: None
) -> None:
    """Bits turned, bytes put in, taken out, doubled, cut off; unary calls and uploads."""
    random_ = random.Random(0)
    x = tiny.input_for("tflite")
    small = infer_request("tiny", input_name(channel, "tiny"), x[:, :2, :2])
    small.parameters["timeout"].int64_param = 5
    small.outputs.add(name="logits")
    load = methods(INFERENCE)["RepositoryModelLoad"].request(model_name="absent")
    load.parameters["threads"].int64_param = 1
    header = next(upload_parts(another, "mutated"))
    seeds = [
        (INFERENCE, "ModelInfer", infer_request("tiny", input_name(channel, "tiny"), x)),
        (INFERENCE, "ModelInfer", small),
        (INFERENCE, "ModelInfer", small),
        (INFERENCE, "RepositoryModelLoad", load),
        (DEVICE, "UploadBundle", header),
        (DEVICE, "Profile", methods(DEVICE)["Profile"].request(bundle="absent", runs=1)),
    ]
    seen: Counter[grpc.StatusCode] = Counter()
    running: list[tuple[Callable[[], object], bytes]] = []
    for number in range(BYTES):
        service, name, message = seeds[number % len(seeds)]
        data = mutated(message.SerializeToString(), random_)
        running.append((start(channel, service, name, data), data))
        if len(running) == AT_ONCE or number == BYTES - 1:
            for wait, sent in running:
                seen[told(error_of(wait), sent)] += 1
            running.clear()
    assert seen.total() == BYTES and seen[grpc.StatusCode.INVALID_ARGUMENT] > BYTES // 2, seen


def mutated(data: bytes, random_: random.Random) -> bytes:
    """The bytes with one to six changes, most of them near the start, where the fields are."""
    changed = bytearray(data)
    for _ in range(random_.randrange(1, 7)):
        if not changed:
            break
        reach = len(changed) if random_.random() < 0.2 else min(len(changed), 120)
        at = random_.randrange(reach)
        match random_.randrange(5):
            case 0:
                changed[at] ^= 1 << random_.randrange(8)
            case 1:
                changed[at:at] = random_.randbytes(random_.randrange(1, 9))
            case 2:
                del changed[at : at + random_.randrange(1, 9)]
            case 3:
                changed[at:at] = changed[at : at + 64]
            case _:
                del changed[at + 1 + random_.randrange(len(changed)) :]
    return bytes(changed)


def start(channel: Any, service: str, name: str, data: bytes) -> Callable[[], object]:
    """Send the bytes as the request of a call; what waits for its answer."""
    method = methods(service)[name]
    if method.server_streaming:
        answers = channel.unary_stream(method.path)(data, timeout=60)
        return lambda: list(answers)
    if method.client_streaming:
        return channel.stream_unary(method.path).future(iter([data]), timeout=60).result
    return channel.unary_unary(method.path).future(data, timeout=60).result


def error_of(wait: Callable[[], object]) -> Any:
    """The error of a call when it has ended; None where it was answered."""
    try:
        wait()
    except grpc.RpcError as error:
        return error
    return None


def test_uploads_with_changed_bytes(
    agent: Agent, channel: Any, another: Path, unharmed: None
) -> None:
    """One part among good ones is spoiled: no bundle appears that is not one of those sent."""

    def bundles() -> set[str]:
        return {b.digest for b in ask(channel, "Describe", of=DEVICE).bundles}

    random_, before = random.Random(1), bundles()
    upload = channel.stream_unary(methods(DEVICE)["UploadBundle"].path)
    honest = set()
    for number in range(UPLOADS):
        (another / "notes.txt").write_text(str(number))  # a bundle that no attempt has begun
        honest.add(sha256_tree(another))
        sent = [p.SerializeToString() for p in upload_parts(another, "spoiled", chunk=16384)]
        at = random_.randrange(len(sent))
        sent[at] = mutated(sent[at], random_)
        told(error_of(upload.future(iter(sent), timeout=60).result), sent[at][:200])
    assert bundles() <= before | honest
    (another / "notes.txt").write_text("unspoiled")
    call(channel, methods(DEVICE)["UploadBundle"])(upload_parts(another, "good"), timeout=60)
    assert sha256_tree(another) in bundles()

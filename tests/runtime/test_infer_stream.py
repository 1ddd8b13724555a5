"""ModelStreamInfer of a real agent: the answers of ModelInfer, in order, over one call."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import (
    CALL_S,
    ask,
    channel_to,
    engines_of,
    eventually,
    infer_request,
    input_name,
    refusal,
    running_agent,
)

from runtime.wire.descriptors import INFERENCE, methods
from runtime.wire.service import call
from runtime.wire.tensors import read_outputs

METHOD = methods(INFERENCE)["ModelStreamInfer"]


class Stream:
    """An open stream: requests are put in one by one, answers come by next()."""

    def __init__(self, channel: Any, metadata: Any = None) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers = call(channel, METHOD)(
            iter(self._requests.get, None), timeout=CALL_S, metadata=metadata
        )

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def take(self, count: int) -> list[Any]:
        return [next(self.answers) for _ in range(count)]

    def end(self) -> list[Any]:
        """No more requests; what is still answered."""
        self._requests.put(None)
        return list(self.answers)


@contextmanager
def streaming(channel: Any, metadata: Any = None) -> Iterator[Stream]:
    stream = Stream(channel, metadata)
    try:
        yield stream
    finally:
        stream.answers.cancel()
        stream.send(None)


@pytest.fixture(scope="module")
def channel(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = tmp_path_factory.mktemp("stream") / "store"
    with (
        running_agent(store, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        yield channel


def request_for(channel: Any, tiny: Any, picture: int, **fields: Any) -> Any:
    x = tiny.input_for("tflite", picture)
    return infer_request("tiny", input_name(channel, "tiny"), x, **fields)


def test_answers_are_those_of_the_unary_call_in_the_order_of_the_requests(
    channel: Any, tiny: Any
) -> None:
    requests = [request_for(channel, tiny, n % 4, id=f"r{n}") for n in range(40)]
    with streaming(channel) as stream:
        stream.send(*requests)
        answers = stream.take(30) + stream.end()
    assert [a.infer_response.id for a in answers] == [r.id for r in requests]
    assert [a.error_message for a in answers] == [""] * 40
    unary = [ask(channel, "ModelInfer", request) for request in requests[:4]]
    for n, answer in enumerate(answers):
        (got,) = read_outputs(answer.infer_response).values()
        (wanted,) = read_outputs(unary[n % 4]).values()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got[0], tiny.outputs_NK[n % 4], atol=1e-5)
        assert set(unary[0].parameters) == set(answer.infer_response.parameters)


def test_an_error_is_the_answer_to_one_request(channel: Any, tiny: Any) -> None:
    good = request_for(channel, tiny, 1, id="good")
    shape = infer_request("tiny", input_name(channel, "tiny"), np.zeros((1, 2, 2, 3), "f4"), id="a")
    absent = infer_request("absent", "x", np.zeros(1, "f4"), id="b")
    no_time = request_for(channel, tiny, 1, id="c")
    no_time.parameters["timeout"].string_param = "soon"
    late = request_for(channel, tiny, 1, id="d")
    late.parameters["timeout"].int64_param = 1  # a microsecond
    wanted = {
        "a": "INVALID_ARGUMENT", "b": "NOT_FOUND", "c": "INVALID_ARGUMENT", "d": "DEADLINE_EXCEEDED"
    }  # fmt: skip
    with streaming(channel) as stream:
        stream.send(good, shape, absent, good, no_time, late, good)
        answers = stream.end()
    assert [a.infer_response.id for a in answers] == ["good", "a", "b", "good", "c", "d", "good"]
    for answer in answers:
        response = answer.infer_response
        if response.id == "good":
            assert not answer.error_message
            np.testing.assert_allclose(
                *(y[0] for y in read_outputs(response).values()), tiny.outputs_NK[1], atol=1e-5
            )
        else:
            assert response.parameters["status"].string_param == wanted[response.id]
            assert answer.error_message
    assert "[1, 2, 2, 3]" in answers[1].error_message


def test_bytes_that_are_no_message_end_the_stream_and_nothing_else(channel: Any, tiny: Any) -> None:
    raw = channel.stream_stream(METHOD.path)
    code, text = refusal(lambda: list(raw(iter([b"\xff\xff\xff"]), timeout=CALL_S)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "ModelInferRequest" in text
    assert ask(channel, "ModelInfer", request_for(channel, tiny, 0)).outputs


def test_a_full_queue_is_answered_and_not_waited_for(tiny_bundle: Path, tmp_path: Path) -> None:
    """With the engine suspended, one request runs, two wait, and the others are refused."""
    flags = ["--queue", "2", "--metrics", "127.0.0.1:0"]
    with (
        running_agent(tmp_path / "store", *flags, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
        streaming(channel) as stream,
    ):
        x = np.zeros((1, 32, 32, 3), np.float32)
        name = input_name(channel, "tiny")
        (engine,) = engines_of(agent.pid)
        engine.suspend()
        try:
            stream.send(*(infer_request("tiny", name, x, id=str(n)) for n in range(6)))
            refused = {"status": "RESOURCE_EXHAUSTED"}
            eventually(lambda: agent.sample("edgevit_requests_total", **refused) == 3)
        finally:
            engine.resume()
        answers = stream.end()
    assert [a.infer_response.id for a in answers] == list("012345")
    told = [a.infer_response.parameters["status"].string_param for a in answers]
    assert told == [""] * 3 + ["RESOURCE_EXHAUSTED"] * 3


def test_a_stream_that_is_given_up_leaves_the_queue(channel: Any, tiny: Any) -> None:
    for _ in range(3):
        with streaming(channel) as stream:
            stream.send(*(request_for(channel, tiny, 0) for _ in range(60)))
            stream.take(1)
    with streaming(channel) as stream:
        stream.send(*(request_for(channel, tiny, n) for n in range(4)))
        assert [a.error_message for a in stream.end()] == [""] * 4


def test_an_idle_stream_does_not_hold_an_agent_that_ends(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its grace is longer than what stop() waits."""
    with (
        running_agent(tmp_path / "store", "--grace", "300", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
        streaming(channel) as stream,
    ):
        x = np.zeros((1, 32, 32, 3), np.float32)
        stream.send(infer_request("tiny", input_name(channel, "tiny"), x))
        stream.take(1)
        assert agent.stop() == 0
        code, text = refusal(lambda: stream.take(1))
        assert code is grpc.StatusCode.UNAVAILABLE and "ending" in text


def test_a_stream_needs_the_token(tiny_bundle: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    carried = [("authorization", "Bearer a-token-of-some-length")]
    with (
        running_agent(tmp_path / "store", "--token-file", token, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request = infer_request("tiny", "absent", np.zeros(1, np.float32))
        with streaming(channel) as stream:
            stream.send(request)
            code, _ = refusal(lambda: stream.take(1))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        with streaming(channel, carried) as stream:
            stream.send(request)
            (answer,) = stream.end()
        assert answer.infer_response.parameters["status"].string_param == "INVALID_ARGUMENT"

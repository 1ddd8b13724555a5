"""Clients that send half, never read, go away, or are very many; the others do not notice."""

from __future__ import annotations

import concurrent.futures
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import http2_raw
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
)

from runtime.wire.descriptors import DEVICE, INFERENCE, methods
from runtime.wire.service import call
from runtime.wire.tensors import read_outputs

INFER = f"/{INFERENCE}/ModelInfer"
IDLE = 500
FILES = 4096


@dataclass
class Serving:
    """An agent that serves the tiny network; `answers` asks it and checks the numbers."""

    agent: Agent
    channel: Any
    request: Any
    want: np.ndarray

    def answers(self, count: int = 20) -> None:
        for _ in range(count):
            (output,) = read_outputs(ask(self.channel, "ModelInfer", self.request)).values()
            np.testing.assert_allclose(output[0], self.want, atol=1e-5)

    def connections(self) -> int:
        return len(psutil.Process(self.agent.pid).net_connections(kind="tcp"))

    def idle(self) -> None:
        """Nothing of the others is left: no queue, no call in work."""

        def models() -> Any:
            return ask(self.channel, "Describe", of=DEVICE).models

        eventually(lambda: all(model.queued == 0 for model in models()))


@pytest.fixture(scope="module")
def serving(
    tiny: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    store = tmp_path_factory.mktemp("connections") / "store"
    with (
        running_agent(store, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request = infer_request("tiny", input_name(channel, "tiny"), tiny.input_for("tflite"))
        yield Serving(agent, channel, request, tiny.outputs_NK[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_half_a_request(serving: Serving, sockets: ExitStack) -> None:
    """Cut in the handshake, the headers, the message; then the clients hang, and then go away."""
    before = serving.connections()
    data = serving.request.SerializeToString()
    whole = http2_raw.headers(INFER, 1) + http2_raw.message(data, 1)
    for length in (0, 4, 9, 40, 200, 5000, len(whole) - 1):
        connection = sockets.enter_context(http2_raw.connected(serving.agent.address))
        connection.sendall(whole[:length])
    host, _, port = serving.agent.address.rpartition(":")
    for opening in (b"", b"PRI * HT", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        connection = sockets.enter_context(
            http2_raw.socket.create_connection((host, int(port)), timeout=30)
        )
        connection.sendall(opening)
    serving.answers()
    sockets.close()
    eventually(lambda: serving.connections() <= before)
    serving.answers()
    serving.idle()


@pytest.mark.slow
def test_clients_that_fall_silent_are_let_go(serving: Serving, sockets: ExitStack) -> None:
    """No handshake in 10 s, or no answer to a keepalive ping in 30 s: the connection is closed."""
    host, _, port = serving.agent.address.rpartition(":")
    strangers = [
        http2_raw.socket.create_connection((host, int(port)), timeout=30) for _ in range(20)
    ]
    silent = [http2_raw.connected(serving.agent.address) for _ in range(20)]
    for connection in (*strangers, *silent):
        sockets.enter_context(connection)
    silent[0].sendall(http2_raw.headers(INFER, 1))
    for connection in (*strangers, *silent):
        assert http2_raw.closed_within(connection, 60)
    serving.answers()


def test_answers_that_nobody_reads(serving: Serving, sockets: ExitStack) -> None:
    """The window is closed: the agent holds 40 answers for one client, and serves the rest."""
    before = serving.connections()
    data = serving.request.SerializeToString()
    connection = sockets.enter_context(http2_raw.connected(serving.agent.address, initial_window=0))
    for number in range(40):  # the few bodies stay within the window that the agent opens
        path, payload = (INFER, data) if number < 4 else (f"/{DEVICE}/Describe", b"")
        stream = 2 * number + 1
        connection.sendall(http2_raw.headers(path, stream) + http2_raw.message(payload, stream))
    serving.answers()
    serving.idle()
    sockets.close()
    eventually(lambda: serving.connections() <= before)
    serving.answers()


def test_a_stream_that_nobody_reads(serving: Serving) -> None:
    """A health watch that is opened and left, many times."""
    watch = call(serving.channel, methods("grpc.health.v1.Health")["Watch"])
    request = methods("grpc.health.v1.Health")["Watch"].request(service="tiny")
    watches = [watch(request, timeout=120) for _ in range(50)]
    assert next(watches[0]).status == 1
    serving.answers()
    for each in watches:
        each.cancel()
    serving.answers()


def test_calls_that_are_given_up(serving: Serving) -> None:
    """Cancelled while they wait: they leave the queue, and those behind them are answered."""
    infer = call(serving.channel, methods(INFERENCE)["ModelInfer"])
    for _ in range(10):
        running = [infer.future(serving.request, timeout=60) for _ in range(40)]
        for future in running:
            future.cancel()
    serving.idle()
    serving.answers()


def test_more_requests_than_the_queue_takes(serving: Serving) -> None:
    """Each is answered, right or with RESOURCE_EXHAUSTED; none hangs."""
    infer = call(serving.channel, methods(INFERENCE)["ModelInfer"])
    running = [infer.future(serving.request, timeout=60) for _ in range(600)]
    right = 0
    for future in running:
        error = future.exception(90)
        if error is None:
            (output,) = read_outputs(future.result()).values()
            np.testing.assert_allclose(output[0], serving.want, atol=1e-5)
            right += 1
        else:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    assert right > 0
    serving.idle()
    serving.answers()


def test_500_connections(serving: Serving, sockets: ExitStack) -> None:
    """Open and idle, while requests are served; then all closed at once."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * IDLE:
        pytest.skip("this user may not open so many files")
    before = serving.connections()
    for _ in range(IDLE):
        sockets.enter_context(http2_raw.connected(serving.agent.address))
    assert serving.connections() >= before + IDLE
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(serving.answers, 25) for _ in range(8)]:
            done.result(60)
    with channel_to(serving.agent.address) as another:
        assert ask(another, "ServerReady").ready
    sockets.close()
    eventually(lambda: serving.connections() <= before + 1)
    serving.answers()

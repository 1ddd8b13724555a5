"""The Prometheus port: what is counted, how many series there can be, who may read it."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import grpc
import numpy as np
import pytest
from agent_tools import (
    Agent,
    Certificates,
    ask,
    certificates,
    channel_to,
    infer_request,
    refusal,
    running_agent,
)
from prometheus_client.parser import text_string_to_metric_families

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address
from runtime.serving.logs import log_to
from runtime.serving.memory import memory_of
from runtime.serving.metrics import MODELS, OTHER, Metrics
from runtime.serving.metrics_server import CONNECTIONS, MetricsServer
from runtime.serving.model import Timings
from runtime.serving.security import Security, read_security
from runtime.wire.descriptors import INFERENCE, methods

HERE = Address("127.0.0.1", 0)
TOKEN = "a-token-of-some-length"


@contextmanager
def listening(metrics: Metrics, security: Security | None = None) -> Iterator[str]:
    server = MetricsServer(HERE, metrics.registry, security or Security())
    try:
        yield str(server.address)
    finally:
        server.close()


def read(url: str, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None):
    request = urllib.request.Request(url, headers=headers or {})
    return urllib.request.urlopen(request, timeout=20, context=context)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and the label values in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    with listening(metrics) as address:
        return samples(read(f"http://{address}/metrics").read().decode())


def test_what_is_counted():
    metrics = Metrics("board", "an-id")
    metrics.request("m", "onnx", "OK", Timings(10, 20, 3000, 40, 2), 4000)
    metrics.request("m", "onnx", "OK", Timings(10, 20, 5000, 40, 1), 6000)
    metrics.request("m", "onnx", "INVALID_ARGUMENT", None, 100)
    metrics.batch("m", 2)
    metrics.restart("m", "killed")
    metrics.upload("OK")
    metrics.upload("DATA_LOSS")
    found = scraped(metrics)
    assert found["edgevit_requests_total", "m", "OK", "onnx"] == 2
    assert found["edgevit_requests_total", "m", "INVALID_ARGUMENT", "onnx"] == 1
    assert found["edgevit_request_seconds_count", "m", "compute"] == 2
    assert found["edgevit_request_seconds_count", "m", "total"] == 3
    assert found["edgevit_request_seconds_sum", "m", "compute"] == pytest.approx(0.008)
    assert found["edgevit_request_seconds_bucket", "0.005", "m", "compute"] == 2
    assert found["edgevit_request_seconds_bucket", "0.0025", "m", "compute"] == 0
    assert found["edgevit_batch_size_sum", "m"] == 2
    assert found["edgevit_engine_restarts_total", "m"] == 1
    assert found["edgevit_uploads_total", "OK"] == found["edgevit_uploads_total", "DATA_LOSS"] == 1
    (info,) = [key for key in found if key[0] == "edgevit_info"]
    assert "board" in info and "an-id" in info


def test_the_series_are_bounded():
    """Names come with uploads: who uploads forever must not fill the memory of Prometheus."""
    metrics = Metrics("board", "an-id")
    for number in range(MODELS + 50):
        metrics.request(f"m{number}", "onnx", "OK", None, 1)
        metrics.batch(f"m{number}", 1)
    found = scraped(metrics)
    counted = [key for key in found if key[0] == "edgevit_requests_total"]
    assert len(counted) == MODELS + 1
    assert found["edgevit_requests_total", OTHER, "OK", "onnx"] == 50
    assert found["edgevit_batch_size_count", OTHER] == 50


def test_two_sets_of_metrics_in_one_process():
    """Each has a registry of its own; the default one stays empty of ours."""
    from prometheus_client import REGISTRY, generate_latest

    first, second = Metrics("a", "1"), Metrics("b", "2")
    first.upload("OK")
    assert ("edgevit_uploads_total", "OK") not in scraped(second)
    assert b"edgevit" not in generate_latest(REGISTRY)


def test_paths_and_methods():
    with listening(Metrics("board", "an-id")) as address:
        told = read(f"http://{address}/metrics?x=1")
        assert told.headers["Content-Type"].startswith("text/plain; version=")
        newer = {"Accept": "application/openmetrics-text; version=1.0.0"}
        told = read(f"http://{address}/metrics", newer)
        assert told.headers["Content-Type"].startswith("application/openmetrics-text")
        assert told.read().endswith(b"# EOF\n")
        for path, code in (("/", 404), ("/metrics/../x", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                read(f"http://{address}{path}")
            assert caught.value.code == code


def test_the_token_is_asked_for_here_too():
    security = Security(token=TOKEN.encode())
    with listening(Metrics("board", "an-id"), security) as address:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \xe9"}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                read(f"http://{address}/metrics", headers)
            assert caught.value.code == 401 and TOKEN not in str(caught.value.headers)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert b"edgevit_info" in read(f"http://{address}/metrics", right).read()


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pems"))


def test_tls_and_a_client_that_says_nothing(pems):
    """One that never begins its handshake keeps nobody else waiting."""
    cert, key = pems.server
    security = read_security(cert, key, pems.ca, None)
    with listening(Metrics("board", "an-id"), security) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))):
            known = ssl.create_default_context(cafile=str(pems.ca))
            known.load_cert_chain(*pems.client)
            assert b"edgevit" in read(f"https://{address}/metrics", context=known).read()
        for pair in (None, pems.foreign):
            stranger = ssl.create_default_context(cafile=str(pems.ca))
            if pair:
                stranger.load_cert_chain(*pair)
            with pytest.raises((ssl.SSLError, OSError)):
                read(f"https://{address}/metrics", context=stranger).read()
        with pytest.raises(OSError):
            read(f"http://{address}/metrics").read()
        assert b"edgevit" in read(f"https://{address}/metrics", context=known).read()


def test_connections_are_bounded_and_given_back():
    with listening(Metrics("board", "an-id")) as address:
        host, port = address.split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS + 5)]
        idle[-1].settimeout(20)
        assert idle[-1].recv(1) == b""  # closed at once
        for one in idle:
            one.close()
        end = time.monotonic() + 20
        while True:
            try:
                assert b"edgevit" in read(f"http://{address}/metrics").read()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_taken_port_and_no_port(tmp_path):
    registry = Metrics("board", "an-id").registry
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address("127.0.0.1", other.getsockname()[1])
        with pytest.raises(RuntimeFault, match=r"--metrics: cannot listen.*in use"):
            MetricsServer(taken, registry, Security())
    with pytest.raises(RuntimeFault, match="--metrics: expected HOST:PORT"):
        MetricsServer(Address(path=tmp_path / "x.sock"), registry, Security())


def test_closing_leaves_no_thread():
    before = set(threading.enumerate())
    with listening(Metrics("board", "an-id")) as address:
        read(f"http://{address}/metrics").read()
    end = time.monotonic() + 20
    while set(threading.enumerate()) - before:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="proportional set sizes are Linux's")
def test_memory_counts_shared_pages_once_and_no_process_that_has_gone():
    import os

    import psutil

    own = memory_of([os.getpid()])
    assert 0 < own <= psutil.Process().memory_info().rss * 1.1
    assert memory_of([2**22 + 1]) == 0 and memory_of([]) == 0


def test_an_agent_tells_of_its_requests(tmp_path: Path, tiny_bundle: Path, tiny) -> None:
    """Through the real port of a real agent, with engines in processes."""
    with (
        running_agent(
            tmp_path / "store", "--metrics", "127.0.0.1:0", "--no-isolate", load=[tiny_bundle]
        ) as agent,
        channel_to(agent.address) as channel,
    ):
        _ask_three_ways(agent, channel, tiny)
        name = "edgevit_requests_total"
        assert agent.sample(name, model="tiny", target="tflite", status="OK") == 5
        assert agent.sample(name, model="tiny", status="INVALID_ARGUMENT") == 1
        assert agent.sample(name) == 6  # none of the unknown model
        for stage in ("queue", "decode", "compute", "encode"):
            assert agent.sample("edgevit_request_seconds_count", model="tiny", stage=stage) == 5
        assert agent.sample("edgevit_request_seconds_sum", model="tiny", stage="compute") > 0
        assert agent.sample("edgevit_batch_size_sum", model="tiny") == 5
        assert agent.sample("edgevit_memory_bytes", process="agent") > 2e7
        assert agent.sample("edgevit_engine_restarts_total") == 0
        text = read(f"http://{agent.metrics}/metrics").read().decode()
        assert samples(text)["edgevit_queue_depth", "tiny"] == 0


def _ask_three_ways(agent: Agent, channel, tiny) -> None:
    wanted = methods(INFERENCE)["ModelMetadata"].request(name="tiny")
    (spec,) = ask(channel, "ModelMetadata", wanted).inputs
    request = infer_request("tiny", spec.name, tiny.input_for("tflite"))
    for _ in range(5):
        ask(channel, "ModelInfer", request)
    wrong = infer_request("tiny", spec.name, np.zeros((1, 2), np.float32))
    assert refusal(lambda: ask(channel, "ModelInfer", wrong))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    unknown = infer_request("nobody", spec.name, tiny.input_for("tflite"))
    assert refusal(lambda: ask(channel, "ModelInfer", unknown))[0] is grpc.StatusCode.NOT_FOUND


def test_logs_are_one_object_a_line():
    import logging

    stream = StringIO()
    handler = log_to(stream, "info")
    log = logging.getLogger("some.module")
    try:
        log.info("two\nlines", extra={"count": 3, "path": Path("/x")})
        log.debug("too small to be told")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed %s", "here")
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(logging.WARNING)
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["event"], first["level"], first["logger"]) == (
        "two\nlines",
        "info",
        "some.module",
    )
    assert first["count"] == 3 and first["path"] == "/x"
    assert first["time"].endswith("+00:00") and "T" in first["time"]
    assert second["event"] == "failed here" and "ValueError: broken" in second["traceback"]
    assert "traceback" not in first

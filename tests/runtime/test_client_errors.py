"""Every way a call fails, against real servers that fail so, and the sentence a person reads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import Certificates, certificates
from small_agent import Doubles, serving, small_services

from runtime.client import Access, AgentClient, AgentFault
from runtime.client import channel as client_channel
from runtime.client.errors import fault_of
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import HEALTH, INFERENCE
from runtime.wire.refused import Refused, exhausted, invalid, not_found, precondition


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pems"))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[tuple[str, Doubles]]:
    services = small_services(tmp_path)
    with serving(services) as address:
        yield address, services[INFERENCE]


@contextmanager
def tls(pems: Certificates, pair: tuple[Path, Path], ask: bool = False) -> Iterator[str]:
    """A server with this certificate; with `ask` it wants one of the client too."""
    chain, key = (path.read_bytes() for path in pair)
    ca = pems.ca.read_bytes() if ask else None
    credentials = grpc.ssl_server_credentials([(key, chain)], ca, ask)
    with serving(small_services(pems.folder), credentials) as address:
        yield address


@contextmanager
def listening(answer: type[BaseHTTPRequestHandler] | None = None) -> Iterator[str]:
    """A port where something that is no agent listens: a web server, or nobody who reads."""
    if answer is None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        return
    with HTTPServer(("127.0.0.1", 0), answer) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join(10)


def fault(access: Access | str, timeout_s: float = 10.0) -> AgentFault:
    """What `live` says."""
    with AgentClient(access) as client, pytest.raises(AgentFault) as caught:
        client.live(timeout_s=timeout_s)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return caught.value


def expect(found: AgentFault, code: str, *words: str) -> None:
    assert found.code is grpc.StatusCode[code], found
    for word in words:
        assert word in str(found), f"no '{word}' in: {found}"
    assert 3 < len(found.short) < 45


def test_nothing_listens():
    with listening() as address:
        pass
    expect(fault(address), "UNAVAILABLE", f"nothing listens at {address}", "edgevit agent --listen")


def test_no_such_host():
    found = fault("no-such-host.invalid:8470")
    expect(found, "UNAVAILABLE", "no host is called 'no-such-host.invalid'", "IP address")


def test_nobody_answers():
    with listening() as address:
        found = fault(address, timeout_s=1)
    expect(found, "DEADLINE_EXCEEDED", f"{address} gave no answer to ServerLive within 1 s")


def test_a_port_that_takes_connections_and_says_nothing(monkeypatch):
    monkeypatch.setattr(client_channel, "CONNECT_MS", 200)
    with listening() as address:
        expect(fault(address), "UNAVAILABLE", f"{address} takes connections but says nothing")


def test_a_web_server():
    with listening(BaseHTTPRequestHandler) as address:
        expect(fault(address), "UNAVAILABLE", f"{address} is no agent", "check the port")


def test_tls_to_a_server_without(stand, pems):
    found = fault(Access(stand[0], tls_ca=pems.ca))
    expect(found, "UNAVAILABLE", "does not speak TLS", "leave the TLS options away")


def test_no_tls_to_a_server_with(pems):
    with tls(pems, pems.server) as address:
        found = fault(address)
    expect(found, "UNAVAILABLE", "the agent may speak TLS", "--tls-ca")


def test_a_certificate_of_another_authority(pems):
    with tls(pems, pems.server) as address:
        expect(
            fault(Access(address, tls_ca=pems.foreign_ca)), "UNAVAILABLE",
            f"is not signed by the authority in {pems.foreign_ca}",
        )  # fmt: skip
        expect(fault(Access(address, tls=True)), "UNAVAILABLE", "of no public authority")


def test_an_expired_certificate(pems):
    with tls(pems, pems.expired) as address:
        found = fault(Access(address, tls_ca=pems.ca))
    expect(found, "UNAVAILABLE", "has expired, or the clock of this machine is wrong")


def test_a_certificate_for_another_name(pems):
    with tls(pems, pems.server) as address:
        found = fault(Access(address, tls_ca=pems.ca, server_name="pi.test"))
        expect(found, "UNAVAILABLE", "is not for 'pi.test'", "server_name")
        with AgentClient(Access(address, tls_ca=pems.ca, server_name="localhost")) as client:
            assert client.live()


@pytest.mark.parametrize("own", [None, "foreign", "expired"])
def test_client_certificates_that_are_not_taken(pems, own):
    cert, key = getattr(pems, own) if own else (None, None)
    with tls(pems, pems.server, ask=True) as address:
        found = fault(Access(address, tls_ca=pems.ca, tls_cert=cert, tls_key=key))
        good, its_key = pems.client
        with AgentClient(Access(address, tls_ca=pems.ca, tls_cert=good, tls_key=its_key)) as client:
            assert client.live()
    if own is None:
        words = ("may ask for a client certificate", "--tls-cert and --tls-key")
    else:
        words = (f"does not take the client certificate {cert}", "may have expired")
    expect(found, "UNAVAILABLE", *words)


def test_no_tls_to_a_server_that_asks_for_certificates(pems):
    with tls(pems, pems.server, ask=True) as address:
        expect(fault(address), "UNAVAILABLE", "the agent may speak TLS")


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "wants a token; give its file (--token-file)"), ("wrong", "does not take this token")],
)
def test_the_token(stand, token, said):
    address, agent = stand
    agent.failures = [Refused(grpc.StatusCode.UNAUTHENTICATED, "no")]
    expect(fault(Access(address, token=token)), "UNAUTHENTICATED", said)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (not_found("no model 'a'; did you mean 'b'?"), "NOT_FOUND", "no model 'a'; did you mean"),
        (precondition("unload it first"), "FAILED_PRECONDITION", ": unload it first"),
        (invalid("got shape [2]"), "INVALID_ARGUMENT", ": got shape [2]"),
        (exhausted("the queue is full"), "RESOURCE_EXHAUSTED", "no room now: the queue is full"),
        (
            exhausted("Concurrent RPC limit exceeded!"), "RESOURCE_EXHAUSTED",
            "takes no more calls at this moment; make fewer at once",
        ),
        (
            Refused(grpc.StatusCode.DATA_LOSS, "file 3 has another sha256"), "DATA_LOSS",
            "file 3 has another sha256; send it again",
        ),
        (
            Refused(grpc.StatusCode.ABORTED, "another upload of it runs"), "ABORTED",
            "another upload of it runs; try again when the other call is done",
        ),
        (
            Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "the engine hung and was ended"),
            "DEADLINE_EXCEEDED", ": the engine hung and was ended",
        ),
        (Refused(grpc.StatusCode.PERMISSION_DENIED, ""), "PERMISSION_DENIED", "permission denied"),
        (ZeroDivisionError("secret"), "INTERNAL", "ServerLive failed inside the agent at"),
        (
            Refused(grpc.StatusCode.UNAVAILABLE, "the engine's socket timed out; it starts again"),
            "UNAVAILABLE", "cannot answer now: the engine's socket timed out; it starts again",
        ),
    ],
)  # fmt: skip
def test_what_the_agent_says_is_passed_on(stand, error, code, words):
    address, agent = stand
    agent.failures = [error] * 8
    found = fault(address)
    expect(found, code, words, address)
    assert "secret" not in str(found)


def test_braces_in_the_agents_words(stand):
    address, agent = stand
    agent.failures = [exhausted("{call} of {0}")]
    assert str(fault(address)).endswith("no room now: {call} of {0}")


def test_a_message_that_the_agent_does_not_take(stand):
    with AgentClient(stand[0]) as client, pytest.raises(AgentFault) as caught:
        client.infer("double", {"x": np.ones((600_000, 4), np.float32)})
    expect(
        caught.value, "RESOURCE_EXHAUSTED", "a message of 96", "more than 8388608,",
        "ModelInfer", "send fewer pictures at once",
    )  # fmt: skip
    assert str(caught.value).endswith("at once"), "no flag raises an agent's limit"


def test_an_answer_that_we_do_not_take(stand, monkeypatch):
    monkeypatch.setattr(client_channel, "RECEIVE_LIMIT", 10_000)
    with AgentClient(stand[0]) as client, pytest.raises(AgentFault) as caught:
        client.infer("double", {"x": np.ones((1000, 4), np.float32)})
    expect(caught.value, "RESOURCE_EXHAUSTED", "a message of 16", "more than 10000,")


def test_a_server_without_the_call(tmp_path):
    with serving({HEALTH: small_services(tmp_path)[HEALTH]}) as address:
        found = fault(address)
    expect(found, "UNIMPLEMENTED", "has no call ServerLive", "older one", "pip install -U edgevit")


def test_a_connection_that_breaks_during_the_call(stand):
    """A relay that ends in the middle of the call, as a device does that loses its power."""
    host, _, port = stand[0].partition(":")
    with Relay((host, int(port))) as relay, AgentClient(relay.address) as client:
        assert client.live()
        caught: list[Any] = []

        def ask() -> None:
            try:
                client.load("wait", timeout_s=8)
            except AgentFault as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert stand[1].waiting.wait(10)
        relay.cut()
        thread.join(20)
    (found,) = caught
    expect(found, "UNAVAILABLE", relay.address, "broke during the call")


@pytest.mark.parametrize("own", [None, "client"])
def test_a_connection_that_breaks_with_tls(pems, own):
    """In TLS 1.3 a client learns only so, now and then, that its certificate is not taken."""
    cert, key = getattr(pems, own) if own else (None, None)
    access = Access("pi:1", tls_ca=pems.ca, tls_cert=cert, tls_key=key)
    found = fault_of(grpc.StatusCode.UNAVAILABLE, "Socket closed", access, "ServerLive", 1)
    hint = f"may not take the client certificate {cert}." if own else "may ask for a client cert"
    expect(found, "UNAVAILABLE", "If this happens with every call, the agent", hint)


class Relay:
    """Passes TCP on to an address until it is cut."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        for each in [self._server, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)


@pytest.mark.parametrize("field", ["tls_ca", "tls_cert"])
def test_tls_files_that_are_not_there(pems, tmp_path, field):
    files = {"tls_ca": pems.ca, "tls_cert": pems.client[0], "tls_key": pems.client[1]}
    with pytest.raises(RuntimeFault, match=rf"cannot read .*\({field}\) .*gone.*No such file"):
        AgentClient(Access("pi:1", **files | {field: tmp_path / "gone"}))


def test_tls_files_that_are_something_else(pems, tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(RuntimeFault, match=r"junk\.pem holds no certificate in PEM form"):
        AgentClient(Access("pi:1", tls_ca=junk))
    with pytest.raises(RuntimeFault, match="are not a certificate and its unencrypted private key"):
        AgentClient(Access("pi:1", tls_cert=pems.client[0], tls_key=pems.server[1]))
    with pytest.raises(RuntimeFault, match="are not a certificate and its unencrypted private key"):
        AgentClient(Access("pi:1", tls_cert=junk, tls_key=pems.client[1]))

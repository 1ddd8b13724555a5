"""Who may speak with an agent: certificates, tokens, and where it listens at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_tools import (
    Agent,
    Certificates,
    ask,
    certificates,
    channel_to,
    credentials,
    refusal,
    running_agent,
)
from cli_tools import edgevit

from runtime.client import Access, AgentClient
from runtime.client.errors import AgentFault
from runtime.wire.descriptors import HEALTH

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
CONNECT_S = 10.0


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pems"))


@pytest.fixture(scope="module")
def guarded(pems: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that asks for client certificates."""
    with running_agent(tmp_path_factory.mktemp("tls") / "store", *pems.flags()) as agent:
        yield agent


def live(agent: Agent, ca: Path, pair: tuple[Path, Path] | None = None) -> bool:
    with channel_to(agent.address, credentials(ca, pair)) as channel:
        return bool(ask(channel, "ServerLive", timeout=CONNECT_S).live)


def client(agent: Agent, ca: Path, pair: tuple[Path, Path] | None = None) -> AgentClient:
    cert, key = pair or (None, None)
    return AgentClient(Access(agent.address, tls_ca=ca, tls_cert=cert, tls_key=key))


def test_both_sides_prove_who_they_are(guarded: Agent, pems: Certificates) -> None:
    assert live(guarded, pems.ca, pems.client)
    with client(guarded, pems.ca, pems.client) as known:
        assert known.live()


@pytest.mark.parametrize("kind", ["none", "expired", "foreign"])
def test_a_client_without_a_good_certificate(guarded: Agent, pems: Certificates, kind: str) -> None:
    pair = {"none": None, "expired": pems.expired, "foreign": pems.foreign}[kind]
    assert refusal(lambda: live(guarded, pems.ca, pair))[0] == UNAVAILABLE
    with client(guarded, pems.ca, pair) as stranger, pytest.raises(AgentFault) as fault:
        stranger.metadata(timeout_s=CONNECT_S)
    assert "certificate" in str(fault.value)
    assert live(guarded, pems.ca, pems.client)


def test_a_server_of_another_authority_is_not_trusted(guarded: Agent, pems: Certificates) -> None:
    assert refusal(lambda: live(guarded, pems.foreign_ca, pems.client))[0] == UNAVAILABLE
    with client(guarded, pems.foreign_ca, pems.client) as wary, pytest.raises(AgentFault):
        wary.metadata(timeout_s=CONNECT_S)


def test_a_plain_client_of_a_tls_agent(guarded: Agent) -> None:
    with channel_to(guarded.address) as channel:
        assert refusal(lambda: ask(channel, "ServerLive", timeout=CONNECT_S))[0] == UNAVAILABLE
    assert guarded.alive()


def test_a_server_whose_certificate_has_expired(pems: Certificates, tmp_path: Path) -> None:
    """It says so at the start, and no client speaks with it."""
    cert, key = pems.expired
    words = ["--tls-cert", cert, "--tls-key", key]
    with running_agent(tmp_path / "store", *words) as agent:
        assert "expired" in agent.stderr()
        assert refusal(lambda: live(agent, pems.ca))[0] == UNAVAILABLE
        with client(agent, pems.ca) as wary, pytest.raises(AgentFault):
            wary.metadata(timeout_s=CONNECT_S)


@pytest.mark.parametrize("fault", ["missing", "no pem", "another key", "only the certificate"])
def test_tls_files_that_are_wrong(pems: Certificates, tmp_path: Path, fault: str) -> None:
    cert, key = pems.server
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    words = {
        "missing": ["--tls-cert", tmp_path / "nowhere.pem", "--tls-key", key],
        "no pem": ["--tls-cert", garbage, "--tls-key", key],
        "another key": ["--tls-cert", cert, "--tls-key", pems.client[1]],
        "only the certificate": ["--tls-cert", cert],
    }[fault]
    answer = edgevit(
        "agent", "--listen", "127.0.0.1:0", "--store", "store", *words, cwd=tmp_path, timeout=60
    )
    assert answer.code == 2 and "--tls-" in answer.err


def test_a_token(tmp_path: Path) -> None:
    """Every call but health asks for it, and no log tells it."""
    token, file = secrets.token_urlsafe(24), tmp_path / "token"
    file.write_text(token + "\n")
    file.chmod(0o600)
    with (
        running_agent(tmp_path / "store", "--token-file", file) as agent,
        channel_to(agent.address) as channel,
    ):
        assert ask(channel, "Check", of=HEALTH).status == 1
        for value in (None, "Bearer", "Bearer ", f"Bearer {token}x", f"Bearer {token[:-1]}",
                      token, f"Basic {token}", "Bearer é".encode()):  # fmt: skip
            name = "authorization-bin" if isinstance(value, bytes) else "authorization"
            metadata = None if value is None else [(name, value)]
            code, text = refusal(
                lambda metadata=metadata: ask(channel, "ServerLive", metadata=metadata)
            )
            assert code == UNAUTHENTICATED and token not in text
        good = [("authorization", f"Bearer {token}")]
        assert ask(channel, "ServerLive", metadata=good).live
        streamed = channel.unary_stream("/edgevit.v1.DeviceService/Profile")(b"", timeout=20)
        assert refusal(lambda: list(streamed))[0] == UNAUTHENTICATED
        with AgentClient(Access(agent.address, token=token)) as known:
            assert known.live()
        with (
            AgentClient(Access(agent.address, token="wrong")) as stranger,
            pytest.raises(AgentFault, match="token") as fault,
        ):
            stranger.metadata()
        assert fault.value.code == UNAUTHENTICATED
        assert token not in agent.stderr() + repr(Access(agent.address, token=token))


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_beyond_loopback_only_with_a_guard(tmp_path: Path, listen: str) -> None:
    words = ["agent", "--listen", listen, "--store", "store"]
    answer = edgevit(*words, cwd=tmp_path, timeout=60)
    assert answer.code == 2
    assert "--insecure" in answer.err and "--tls" in answer.err and "--token-file" in answer.err


def test_beyond_loopback_when_told_to(tmp_path: Path, pems: Certificates) -> None:
    def reached(*flags: object, trust: Any = None) -> bool:
        with running_agent(tmp_path / "store", *flags, listen="0.0.0.0:0") as agent:
            port = agent.address.rpartition(":")[2]
            with channel_to(f"127.0.0.1:{port}", trust) as channel:
                return bool(ask(channel, "ServerLive").live)

    assert reached("--insecure")
    assert reached(*pems.flags(), trust=credentials(pems.ca, pems.client))

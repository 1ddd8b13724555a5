"""Addresses, TLS files and tokens: what is refused at the start, and what a caller is answered."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from agent_tools import Certificates, certificates, credentials
from cryptography.hazmat.primitives import serialization
from server_tools import calls_of, refusal, run, served

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address, parse_address
from runtime.serving.grpc_server import bind, make_server
from runtime.serving.limits import Limits
from runtime.serving.security import Security, check_reach, read_security
from runtime.serving.services.health import Health
from runtime.serving.services.reflection import Reflection
from runtime.wire.descriptors import HEALTH, INFERENCE, REFLECTION, SERVICES, methods

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pems"))


@pytest.mark.parametrize(
    ("text", "written", "loopback"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", True),
        ("127.9.9.9:0", "127.9.9.9:0", True),
        ("[::1]:8001", "[::1]:8001", True),
        ("localhost:1", "127.0.0.1:1", True),
        ("unix:/run/edgevit.sock", "unix:/run/edgevit.sock", True),
        ("unix:///run/edgevit.sock", "unix:/run/edgevit.sock", True),
        ("0.0.0.0:8001", "0.0.0.0:8001", False),
        ("[::]:8001", "[::]:8001", False),
        ("[::ffff:127.0.0.1]:8001", "[::ffff:127.0.0.1]:8001", True),
        ("[::ffff:10.0.0.1]:8001", "[::ffff:10.0.0.1]:8001", False),
        ("10.1.2.3:65535", "10.1.2.3:65535", False),
    ],
)
def test_addresses(text, written, loopback):
    address = parse_address(text)
    assert str(address) == written and address.loopback is loopback


@pytest.mark.parametrize(
    "text",
    ["", "8001", ":8001", "host", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
     "127.0.0.1:8001/x", "::1:8001", "[::1]", "[]:1", "http://127.0.0.1:1", "unix:", "unix:here",
     "unix:/a\0b", "127.0.0.1:٨٠"],
)  # fmt: skip
def test_no_addresses(text):
    with pytest.raises(RuntimeFault, match="expected HOST:PORT"):
        parse_address(text)


def test_a_host_that_nobody_knows():
    with pytest.raises(RuntimeFault, match=r"host is unknown.*"):
        parse_address("no-such-host.invalid:8001")


def test_a_unix_path_that_is_too_long():
    with pytest.raises(RuntimeFault, match="at most 107 bytes"):
        parse_address("unix:/" + "x" * 107)


GUARDS = {
    "nothing": Security(),
    "tls alone": Security(cert=Path("c"), key=Path("k")),
    "client certificates": Security(cert=Path("c"), key=Path("k"), client_ca=Path("a")),
    "token": Security(token=TOKEN.encode()),
}


@pytest.mark.parametrize(
    ("guard", "allowed"),
    [("nothing", False), ("tls alone", False), ("client certificates", True), ("token", True)],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "2001:db8::1"])
def test_beyond_loopback_only_with_a_guard(guard, allowed, host):
    address, security = Address(host, 8001), GUARDS[guard]
    check_reach(address, security, True, "--listen")
    check_reach(Address("127.0.0.1", 8001), Security(), False, "--listen")
    if allowed:
        check_reach(address, security, False, "--listen")
        return
    with pytest.raises(RuntimeFault) as caught:
        check_reach(address, security, False, "--metrics")
    for word in (f"--metrics {address}", "--tls-client-ca", "--token-file", "--insecure"):
        assert word in str(caught.value)


def read(pems, **files):
    given = {"cert": None, "key": None, "client_ca": None, "token_file": None}
    return read_security(**(given | files))


def test_a_certificate_and_a_key_alone(pems):
    cert, key = pems.server
    for files, word in (
        ({"cert": cert}, "--tls-key"),
        ({"key": key}, "--tls-cert"),
        ({"client_ca": pems.ca}, "--tls-cert"),
    ):
        with pytest.raises(RuntimeFault, match=word):
            read(pems, **files)


def test_tls_files_that_are_wrong(pems, tmp_path):
    cert, key = pems.server
    empty, folder = tmp_path / "empty.pem", tmp_path / "folder"
    empty.write_text("")
    folder.mkdir()
    gone = tmp_path / "gone.pem"
    cases = [
        ({"cert": gone, "key": key}, "--tls-cert", "No such file"),
        ({"cert": cert, "key": gone}, "--tls-key", "No such file"),
        ({"cert": folder, "key": key}, "--tls-cert", "Is a directory"),
        ({"cert": empty, "key": key}, "--tls-cert", "expected a certificate"),
        ({"cert": cert, "key": cert}, "--tls-key", "expected a certificate and its key"),
        ({"cert": cert, "key": pems.client[1]}, "--tls-key", "is not the key of"),
        ({"cert": cert, "key": key, "client_ca": gone}, "--tls-client-ca", "No such file"),
        ({"cert": cert, "key": key, "client_ca": empty}, "--tls-client-ca", "no certificate"),
    ]
    for files, flag, word in cases:
        with pytest.raises(RuntimeFault) as caught:
            read(pems, **files)
        assert flag in str(caught.value) and word in str(caught.value)


def test_a_key_with_a_password(pems, tmp_path):
    """Nobody could type it: an agent starts by itself."""
    key = serialization.load_pem_private_key(pems.server[1].read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(RuntimeFault, match=r"is encrypted.*openssl pkey"):
        read(pems, cert=pems.server[0], key=locked)


def test_a_certificate_outside_its_dates_is_a_warning(pems, caplog):
    with caplog.at_level(logging.WARNING):
        read(pems, cert=pems.server[0], key=pems.server[1], client_ca=pems.ca)
        assert caplog.records == []
        read(pems, cert=pems.expired[0], key=pems.expired[1], client_ca=pems.ca)
    (record,) = caplog.records
    assert "has expired" in record.getMessage() and record.file == str(pems.expired[0])


def test_token_files(tmp_path, caplog):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        security = read(None, token_file=file)
        assert security.token == TOKEN.encode() and caplog.records == []
        file.chmod(0o644)
        read(None, token_file=file)
        file.write_text("short")
        file.chmod(0o600)
        read(None, token_file=file)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "chmod 600" in said[0] and "short enough" in said[1]
    for text in ("", "\n", "two words", "Umlaut-ä-und-mehr", "line\nline"):
        file.write_text(text)
        with pytest.raises(RuntimeFault, match="one line of printable ASCII"):
            read(None, token_file=file)


def test_a_token_shows_nowhere():
    assert TOKEN not in repr(GUARDS["token"]) + str(GUARDS["token"])


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (f"Bearer {TOKEN}", True), (f"bearer {TOKEN}", True), (f"Bearer {TOKEN}".encode(), True),
        (None, False), ("", False), ("Bearer", False), ("Bearer ", False), (TOKEN, False),
        (f"Basic- {TOKEN}", False), (f"Bearer  {TOKEN}", False), (f"Bearer {TOKEN[:-1]}", False),
        (f"Bearer {TOKEN} ", False), (f"Bearer {TOKEN}ä", False), (f"Digest {TOKEN}", False),
    ],
)  # fmt: skip
def test_who_is_admitted(value, right):
    assert GUARDS["token"].admits(value) is right
    assert Security().admits(value)


def test_every_call_but_health_needs_the_token():
    """Also one that is not there, and one that streams; and no message is read before."""

    async def work() -> None:
        services = {HEALTH: Health(), REFLECTION: Reflection(REFLECTION, SERVICES)}
        services[HEALTH].set("", True)
        async with served(services, security=GUARDS["token"]) as channel:
            assert (await calls_of(channel, HEALTH)("Check")).status == 1
            watch = calls_of(channel, HEALTH)("Watch")
            assert (await watch.read()).status == 1
            # As one message: grpc.aio takes an early end for a cancel of its own stream.
            stream = channel.unary_stream(f"/{REFLECTION}/ServerReflectionInfo")
            unknown = channel.unary_unary("/no.such.Service/Call")
            for given in (None, [("authorization", "Bearer wrong")], [("x", f"Bearer {TOKEN}")]):
                for call in (
                    stream(b"no message", metadata=given).read(),
                    unknown(b"no message", metadata=given),
                ):
                    code, text = await refusal(call)
                    assert code is grpc.StatusCode.UNAUTHENTICATED
                    assert "authorization: Bearer" in text and TOKEN not in text
            right = [("authorization", f"Bearer {TOKEN}")]
            assert await stream(b"", metadata=right).read()
            code, _ = await refusal(unknown(b"", metadata=right))
            assert code is grpc.StatusCode.UNIMPLEMENTED

    run(work())


@pytest.mark.parametrize("kind", ["known", "nobody", "expired", "foreign"])
def test_client_certificates(pems, kind):
    pairs = {
        "known": pems.client, "nobody": None, "expired": pems.expired, "foreign": pems.foreign,
    }  # fmt: skip
    cert, key = pems.server
    security = read(pems, cert=cert, key=key, client_ca=pems.ca)

    async def work() -> None:
        health = Health()
        health.set("", True)
        trust = credentials(pems.ca, pairs[kind])
        async with served({HEALTH: health}, security=security, channel_credentials=trust) as known:
            answer = calls_of(known, HEALTH)("Check")
            if kind == "known":
                assert (await answer).status == 1
            else:
                assert (await refusal(answer))[0] is grpc.StatusCode.UNAVAILABLE

    run(work())


def test_a_taken_port_is_told(tmp_path):
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = Address("127.0.0.1", other.getsockname()[1])
            with pytest.raises(RuntimeFault, match=r"Address already in use.*--listen"):
                bind(make_server(Limits(), Security()), address, Security())
        foreign = Address("192.0.2.1", 8001)  # of RFC 5737: nobody has it
        with pytest.raises(RuntimeFault, match="Cannot assign requested address"):
            bind(make_server(Limits(), Security()), foreign, Security())

    run(work())


def test_two_agents_do_not_share_a_port():
    """As gRPC would have it: SO_REUSEPORT gives each of two servers half of the calls."""

    async def work() -> None:
        async with served({HEALTH: Health()}):
            pass
        first = make_server(Limits(), Security())
        address = bind(first, Address("127.0.0.1", 0), Security())
        await first.start()
        with pytest.raises(RuntimeFault, match=f"cannot listen on {address}"):
            bind(make_server(Limits(), Security()), address, Security())
        await first.stop(None)

    run(work())


def test_a_unix_socket(tmp_path):
    path = tmp_path / "agent.sock"

    async def work() -> None:
        health = Health()
        health.set("", True)
        async with served({HEALTH: health}, listen=f"unix:{path}") as channel:
            assert (await calls_of(channel, HEALTH)("Check")).status == 1
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(RuntimeFault, match="another server listens there"):
                bind(make_server(Limits(), Security()), Address(path=path), Security())
            assert (await calls_of(channel, HEALTH)("Check")).status == 1

    run(work())


def test_the_unix_socket_of_a_server_that_died(tmp_path):
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))

    async def work() -> None:
        health = Health()
        health.set("", True)
        async with served({HEALTH: health}, listen=f"unix:{path}") as channel:
            assert (await calls_of(channel, HEALTH)("Check")).status == 1

    run(work())


def test_a_unix_path_that_is_something_else(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")

    async def work() -> None:
        for path, word in ((file, "is no socket"), (tmp_path / "no" / "where", "no such folder")):
            with pytest.raises(RuntimeFault, match=word):
                bind(make_server(Limits(), Security()), Address(path=path), Security())

    run(work())
    assert file.read_text() == "mine"


def test_messages_are_bounded_in_both_directions():
    """Asked with 2000 bytes, and for the 5000 of a descriptor, where 1500 is the limit."""

    async def work() -> None:
        services = {HEALTH: Health(), REFLECTION: Reflection(REFLECTION, SERVICES)}
        services[HEALTH].set("", True)
        async with served(services, limits=Limits(message_bytes=1500)) as channel:
            check = calls_of(channel, HEALTH)
            code, text = await refusal(check("Check", service="x" * 2000))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "1500" in text
            stream = channel.unary_stream(f"/{REFLECTION}/ServerReflectionInfo")
            request = methods(REFLECTION)["ServerReflectionInfo"].request
            asked = request(file_containing_symbol=INFERENCE).SerializeToString()
            code, text = await refusal(stream(asked).read())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "1500" in text
            assert (await check("Check")).status == 1

    run(work())


def test_calls_at_once_are_bounded():
    async def work() -> None:
        health = Health()
        async with served({HEALTH: health}, limits=Limits(concurrent_calls=3)) as channel:
            ask = calls_of(channel, HEALTH)
            watches = [ask("Watch") for _ in range(3)]
            for watch in watches:
                await watch.read()
            code, _ = await refusal(ask("Check"))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            watches[0].cancel()
            while code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                code, _ = await refusal(ask("Check"))
            assert code is grpc.StatusCode.NOT_FOUND  # answered: nobody has said what it serves

    run(work())

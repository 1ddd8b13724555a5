"""How a client reaches an agent: the address, TLS files, the token, and gRPC's channel options."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from runtime.errors import RuntimeFault
from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE

# Calls that may be sent twice: they read, or (ModelInfer) leave nothing behind.
IDEMPOTENT = {
    INFERENCE: [
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "RepositoryIndex",
    ],
    DEVICE: ["Describe", "UploadStatus"],
    HEALTH: ["Check"],
}  # fmt: skip
RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
RECEIVE_LIMIT = 256 << 20
"""Bytes of the largest answer taken. What may be sent is for the agent to limit."""
CONNECT_MS = 5000
"""How long a connection and its TLS handshake may take."""

_NAMED = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Access:
    """Where an agent listens and what it wants to see.

    `address` is HOST:PORT, [IPv6]:PORT or unix:PATH. TLS is on where `tls` says so or one of its
    files is given: tls_ca is the authority that signed the agent's certificate (without it the
    public ones count), tls_cert and tls_key are our own for an agent that asks for one, server_name
    is the name in the agent's certificate where it is not the host's. All are PEM files. Raises
    RuntimeFault for an address or a token that cannot be one.
    """

    address: str
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    server_name: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"unix:(?!(//)?$).+", self.address):
            named = _NAMED.fullmatch(self.address)
            if named is None or not 0 < int(named[1]) < 65536:
                raise RuntimeFault(
                    f"expected the address of an agent as HOST:PORT, got '{self.address}'"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            given, absent = ("certificate", "key") if self.tls_cert else ("key", "certificate")
            raise RuntimeFault(f"a client {given} needs its {absent} too; give both PEM files")
        if self.server_name and not self.secure:
            raise RuntimeFault(
                f"the server name '{self.server_name}' is checked with TLS only; give the agent's "
                "authority (tls_ca) or turn TLS on"
            )
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise RuntimeFault(
                "a token is one word of printable ASCII characters; the one given has other "
                "characters, or none"
            )

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries: the token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def read_token(path: Path) -> str:
    """The token in a file, without the space around it. Raises RuntimeFault."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RuntimeFault(f"cannot read the token file {path}: {why}") from error
    if not token:
        raise RuntimeFault(f"the token file {path} is empty")
    return token


def open_channel(access: Access, package: Any = grpc, more: Sequence[tuple[str, Any]] = ()) -> Any:
    """A channel to an agent, of `grpc` or `grpc.aio`; it connects with the first call.

    more are options of gRPC beside those of `channel_options`. Raises RuntimeFault where a TLS file
    cannot be read or is not what it should be.
    """
    options = [*channel_options(access), *more]
    if not access.secure:
        return package.insecure_channel(access.address, options)
    return package.secure_channel(access.address, _credentials(access), options)


def channel_options(access: Access) -> list[tuple[str, Any]]:
    """gRPC's options: limits, quick reconnection, keepalive, retries where they are safe."""
    names = [{"service": s, "method": m} for s, methods in IDEMPOTENT.items() for m in methods]
    config = {"methodConfig": [{"name": names, "retryPolicy": RETRIES}]}
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", RECEIVE_LIMIT),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),  # in fact the time to connect in
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5000),
        # The same for an agent whose system acknowledges while it hangs; gRPC's own: a minute.
        ("grpc.http2.ping_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.service_config", json.dumps(config)),
        # A call above this size is not kept for a retry; a batch of pictures soon is.
        ("grpc.per_rpc_retry_buffer_size", RECEIVE_LIMIT),
        # Devices stand in our own network, where http_proxy has no business.
        ("grpc.enable_http_proxy", 0),
        # Without it two clients of one process share a connection, its failures included.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    return options


def _credentials(access: Access) -> grpc.ChannelCredentials:
    """gRPC says of a bad PEM file only that it cannot connect, so Python's TLS reads them first."""
    authority = _pem(access.tls_ca, "the authority's certificate (tls_ca)")
    chain = _pem(access.tls_cert, "the client certificate (tls_cert)")
    key = _pem(access.tls_key, "the client key (tls_key)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if access.tls_ca is not None:
        try:
            context.load_verify_locations(access.tls_ca)
        except ssl.SSLError as error:
            raise RuntimeFault(
                f"{access.tls_ca} holds no certificate in PEM form; tls_ca is the authority that "
                "signed the agent's certificate"
            ) from error
    if access.tls_cert is not None:
        try:
            context.load_cert_chain(access.tls_cert, access.tls_key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise RuntimeFault(
                f"{access.tls_cert} and {access.tls_key} are not a certificate and its unencrypted "
                f"private key in PEM form ({getattr(error, 'reason', None) or error})"
            ) from error
    return grpc.ssl_channel_credentials(authority, key, chain)


def _pem(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise RuntimeFault(f"cannot read {what} {path}: {error.strerror}") from error

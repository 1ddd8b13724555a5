"""A grpc.aio server with finite limits, bound to one address that nobody else has."""

from __future__ import annotations

import os
from typing import Any

import grpc.aio

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address, claim_unix
from runtime.serving.limits import Limits
from runtime.serving.security import Security, TokenGuard

SECOND = 1000  # ms
OWNER_ONLY = 0o177  # umask of a unix socket


def make_server(limits: Limits, security: Security) -> grpc.aio.Server:
    """The server without services and address."""
    return grpc.aio.server(
        interceptors=[TokenGuard(security)] if security.token is not None else [],
        options=_options(limits),
        maximum_concurrent_rpcs=limits.concurrent_calls,
    )


def bind(server: grpc.aio.Server, address: Address, security: Security) -> Address:
    """Listen at `address`; gives it with the port that it got.

    Raises RuntimeFault where the address is taken or not one of this machine.
    """
    credentials = security.credentials()
    before = None
    if address.path is not None:
        claim_unix(address.path)
        before = os.umask(OWNER_ONLY)
    try:
        port = (
            server.add_insecure_port(str(address))
            if credentials is None
            else server.add_secure_port(str(address), credentials)
        )
    except RuntimeError as error:
        raise RuntimeFault(
            f"cannot listen on {address}: {_why(address)}; stop what has it, or choose another "
            "address with --listen"
        ) from error
    finally:
        if before is not None:
            os.umask(before)
    return address.at(port)


def _why(address: Address) -> str:
    """The system's own reason, which gRPC keeps to itself."""
    if address.path is not None:
        return "the socket cannot be made there"
    import socket

    with socket.socket(address.family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return "the port is taken"


def _options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # or two agents share a port, each with half of the calls
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        # A client that has gone without a word is noticed in half a minute.
        ("grpc.keepalive_time_ms", 20 * SECOND),
        ("grpc.keepalive_timeout_ms", 10 * SECOND),
        # The same for a peer whose system acknowledges while its program hangs; gRPC's own: 60 s.
        ("grpc.http2.ping_timeout_ms", 10 * SECOND),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ask as often; gRPC's own five minutes would cut them off.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5 * SECOND),
        # gRPC's own pings, by which a client measures its link, come as often as data does; over a
        # slow one they were counted as a misuse, and the connection ended with too_many_pings.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.server_handshake_timeout_ms", 10 * SECOND),
    ]

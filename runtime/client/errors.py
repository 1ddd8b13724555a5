"""What a failed call means and what to do about it: one sentence for each way it can fail.

gRPC names a status, and for all that happens between two machines that status is UNAVAILABLE; what
happened stands in the details. The patterns below are what grpcio 1.85 writes there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from runtime.client.channel import Access
from runtime.errors import RuntimeFault


class AgentFault(RuntimeFault):
    """A call to an agent that failed: the gRPC status, what to do, and why in a few words."""

    def __init__(self, code: grpc.StatusCode, message: str, short: str) -> None:
        super().__init__(message)
        self.code = code
        self.short = short


@dataclass(frozen=True)
class _Failure:
    """A call that failed: what gRPC says, and what was asked of whom."""

    code: grpc.StatusCode
    details: str
    access: Access
    call: str
    timeout_s: float

    @property
    def address(self) -> str:
        return self.access.address


Explain = Callable[[_Failure], str]


def fault_of(
    code: grpc.StatusCode, details: str | None, access: Access, call: str, timeout_s: float
) -> AgentFault:
    """The fault for a call (its name in the protocol) that ended with a status other than OK."""
    failure = _Failure(code, (details or "").strip(), access, call, timeout_s)
    own = code.name.lower().replace("_", " ")
    patterns = _PATTERNS.get(code, [])
    if code is grpc.StatusCode.UNAVAILABLE and re.match(_NOT_CONNECTED, failure.details, re.I):
        patterns = _CONNECTION
    for pattern, short, say in patterns:
        if re.search(pattern, failure.details, re.IGNORECASE):
            return AgentFault(code, say(failure), short)
    return AgentFault(code, f"the agent at {access.address}: {failure.details or own}", own)


def _not_now(f: _Failure) -> str:
    return f"the agent at {f.address} cannot answer now: {f.details or 'it gives no reason'}"


def _too_late(f: _Failure) -> str:
    return (
        f"{f.address} gave no answer to {f.call} within {f.timeout_s:g} s; the device may be busy, "
        "hung or behind a firewall. Try again or allow more time"
    )


def _cancelled(f: _Failure) -> str:
    return f"{f.call} at {f.address} was cancelled before it was answered"


def _no_host(f: _Failure) -> str:
    host = f.address.rpartition(":")[0]
    return (
        f"no host is called '{host}' ({f.address}); check the spelling, or give the device's "
        "IP address"
    )


def _refused(f: _Failure) -> str:
    return (
        f"nothing listens at {f.address}; start `edgevit agent --listen ...` on the device, "
        "or check the port"
    )


def _no_way(f: _Failure) -> str:
    return (
        f"{f.address} cannot be reached; check that the device is on, in this network, and "
        "that no firewall keeps the port closed"
    )


def _silent(f: _Failure) -> str:
    return (
        f"{f.address} takes connections but says nothing; the agent hangs, or something else "
        "listens there"
    )


def _expired(f: _Failure) -> str:
    return (
        f"the certificate of {f.address} has expired, or the clock of this machine is wrong; "
        "renew the certificate on the device"
    )


def _too_early(f: _Failure) -> str:
    return (
        f"the certificate of {f.address} is not valid yet; the clock of this machine or of "
        "the one that made it is wrong"
    )


def _foreign(f: _Failure) -> str:
    if f.access.tls_ca is None:
        return (
            f"the certificate of {f.address} is of no public authority; give the PEM file of "
            "the authority that signed it (--tls-ca)"
        )
    return (
        f"the certificate of {f.address} is not signed by the authority in {f.access.tls_ca}: "
        "it is another agent's, or --tls-ca names the wrong file"
    )


def _other_name(f: _Failure) -> str:
    name = f.access.server_name or f.address.rpartition(":")[0]
    return (
        f"the certificate of {f.address} is not for '{name}'; use a name that stands in it, "
        "or give that name as server_name in devices.yaml"
    )


def _plain_server(f: _Failure) -> str:
    return (
        f"{f.address} does not speak TLS; leave the TLS options away, or start the agent with "
        "--tls-cert and --tls-key"
    )


def _no_agent(f: _Failure) -> str:
    return f"{f.address} is no agent: what listens there does not speak gRPC; check the port"


def _handshake(f: _Failure) -> str:
    return f"the TLS handshake with {f.address} failed: {f.details.rpartition('last error: ')[2]}"


def _closed_at_once(f: _Failure) -> str:
    """The other side hung up while the connection was made; in TLS 1.3 it gives no reason."""
    if not f.access.secure:
        return (
            f"{f.address} closed the connection at once: the agent may speak TLS; give its "
            "authority (--tls-ca)"
        )
    if f.access.tls_cert is None:
        return (
            f"{f.address} closed the connection after the TLS handshake: the agent may ask "
            "for a client certificate; give --tls-cert and --tls-key"
        )
    return (
        f"{f.address} closed the connection after the TLS handshake: the agent does not take "
        f"the client certificate {f.access.tls_cert}; it may have expired, or be of an authority "
        "that the agent does not know (its --tls-client-ca)"
    )


def _broken(f: _Failure) -> str:
    hint = ""
    if f.access.tls_cert is not None:
        hint = (
            " If this happens with every call, the agent may not take the client certificate "
            f"{f.access.tls_cert}."
        )
    elif f.access.secure:
        hint = (
            " If this happens with every call, the agent may ask for a client certificate "
            "(--tls-cert and --tls-key)."
        )
    return (
        f"the connection to {f.address} broke during the call ({f.details}): the agent was "
        f"stopped or the network failed.{hint}"
    )


def _cannot_connect(f: _Failure) -> str:
    return f"cannot connect to {f.address}: {f.details.rpartition('last error: ')[2]}"


def _token(f: _Failure) -> str:
    if f.access.token is None:
        return f"the agent at {f.address} wants a token; give its file (--token-file)"
    return (
        f"the agent at {f.address} does not take this token; give the one in the file that it "
        "was started with (--token-file)"
    )


def _message_too_large(f: _Failure) -> str:
    sizes = re.search(r"\((\d+) vs\. (\d+)\)", f.details)
    size = f" of {sizes[1]} bytes, more than {sizes[2]}," if sizes else ""
    return (
        f"a message{size} is over what one side takes ({f.address}, {f.call}); send fewer "
        "pictures at once"
    )


def _too_many_calls(f: _Failure) -> str:
    return f"the agent at {f.address} takes no more calls at this moment; make fewer at once"


def _busy(f: _Failure) -> str:
    return f"the agent at {f.address} has no room now: {f.details}"


def _web_server(f: _Failure) -> str:
    return (
        f"{f.address} is no agent: a web server or a proxy answers there ({f.details}); "
        "check the port"
    )


def _no_such_call(f: _Failure) -> str:
    return (
        f"the server at {f.address} has no call {f.call}: it is no edgevit agent, or an older "
        "one (pip install -U edgevit on the device)"
    )


def _damaged(f: _Failure) -> str:
    return f"the agent at {f.address}: {f.details}; send it again"


def _in_the_way(f: _Failure) -> str:
    return f"the agent at {f.address}: {f.details}; try again when the other call is done"


def _failed_inside(f: _Failure) -> str:
    return f"{f.call} failed inside the agent at {f.address}: {f.details}"


Patterns = list[tuple[str, str, Explain]]
"""What stands in the details, the reason in a few words, the sentence."""

_NOT_CONNECTED = r"failed to connect|errors resolving|dns resolution|connections to all backends"
_CUT = (
    r"^(unavailable: |unknown: )?(socket closed|connection reset|broken pipe|recvmsg|sendmsg|"
    r"goaway|stream removed|transport closed|keepalive|ping timeout)"
)
_CONNECTION: Patterns = [
    (r"errors resolving|dns resolution|lookup", "no such host", _no_host),
    (r"connection refused|no such file or directory", "nothing listens there", _refused),
    (r"certificate has expired", "its certificate has expired", _expired),
    (r"certificate is not yet valid", "its certificate is not valid yet", _too_early),
    (r"certificate_verify_failed", "its certificate is of another authority", _foreign),
    (r"hostname verification", "its certificate has another name", _other_name),
    (r"wrong_version_number", "it does not speak TLS", _plain_server),
    (r"expected settings frame|http1\.x|parsing http/2", "no agent listens there", _no_agent),
    (r"before receiving settings", "it takes connections and says nothing", _silent),
    (r"no route to host|unreachable|timed out|host is down", "no way there", _no_way),
    (r"handshake", "the TLS handshake failed", _handshake),
    (
        r"socket closed|connection reset|broken pipe|end of file",
        "it closed the connection",
        _closed_at_once,
    ),
    (r"", "no connection", _cannot_connect),
]
_PATTERNS: dict[grpc.StatusCode, Patterns] = {
    grpc.StatusCode.UNAVAILABLE: [
        (_CUT, "the connection broke", _broken),
        (r"", "not available now", _not_now),
    ],
    grpc.StatusCode.DEADLINE_EXCEEDED: [
        (r"^(deadline exceeded)?$", "no answer in time", _too_late),
    ],
    grpc.StatusCode.CANCELLED: [(r"", "cancelled", _cancelled)],
    grpc.StatusCode.UNAUTHENTICATED: [(r"", "wants the right token", _token)],
    grpc.StatusCode.RESOURCE_EXHAUSTED: [
        (r"message larger than max", "message too large", _message_too_large),
        (r"concurrent rpc limit", "too many calls at once", _too_many_calls),
        (r"", "no room now", _busy),
    ],
    grpc.StatusCode.UNIMPLEMENTED: [
        (r"http2 header", "no agent listens there", _web_server),
        (r"", "it has no such call", _no_such_call),
    ],
    grpc.StatusCode.DATA_LOSS: [(r"", "damaged on the way", _damaged)],
    grpc.StatusCode.ABORTED: [(r"", "another call is in the way", _in_the_way)],
    grpc.StatusCode.INTERNAL: [(r"", "failed inside the agent", _failed_inside)],
    grpc.StatusCode.UNKNOWN: [(r"", "failed inside the agent", _failed_inside)],
}

"""Who may call: TLS from PEM files, a bearer token, and where a server may listen without them."""

from __future__ import annotations

import hmac
import logging
import ssl
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address
from runtime.wire.descriptors import HEALTH

log = logging.getLogger(__name__)

EXEMPT = f"/{HEALTH}/"  # probes of an orchestrator carry no token
SCHEME = "bearer "
# Of OpenSSL's verification; a server with such a certificate runs, but nobody will trust it.
OUTSIDE_ITS_DATES = {9: "is not valid yet", 10: "has expired"}
WORTH_GUESSING = 16  # characters; shorter tokens are worth a warning


@dataclass(frozen=True)
class Security:
    """What a server demands of its callers; all None: nothing. The repr shows no secret."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: bytes | None = field(default=None, repr=False)

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.cert is not None

    def credentials(self) -> grpc.ServerCredentials | None:
        """For gRPC; None without TLS."""
        if self.cert is None or self.key is None:
            return None
        ca = _read(self.client_ca, "--tls-client-ca") if self.client_ca else None
        return grpc.ssl_server_credentials(
            [(_read(self.key, "--tls-key"), _read(self.cert, "--tls-cert"))],
            root_certificates=ca,
            require_client_auth=ca is not None,
        )

    def context(self) -> ssl.SSLContext | None:
        """The same for a server over plain sockets; None without TLS."""
        return _context(self.cert, self.key, self.client_ca) if self.cert and self.key else None

    def admits(self, authorization: str | bytes | None) -> bool:
        """Whether an `authorization` value carries the token; compared in constant time."""
        if self.token is None:
            return True
        if authorization is None:
            return False
        if isinstance(authorization, str):
            authorization = authorization.encode()
        scheme, given = authorization[: len(SCHEME)], authorization[len(SCHEME) :]
        return hmac.compare_digest(given, self.token) and scheme.lower() == SCHEME.encode()


def read_security(
    cert: Path | None, key: Path | None, client_ca: Path | None, token_file: Path | None
) -> Security:
    """Check every file before anything starts. Raises RuntimeFault naming the one that is wrong."""
    if (cert is None) != (key is None):
        given, lacking = ("--tls-cert", "--tls-key") if cert else ("--tls-key", "--tls-cert")
        raise RuntimeFault(f"{given} needs {lacking}: a server shows both or neither")
    if client_ca is not None and cert is None:
        raise RuntimeFault(
            "--tls-client-ca needs --tls-cert and --tls-key: without TLS clients show none"
        )
    if cert is not None and key is not None:
        context = _context(cert, key, client_ca)
        _warn_of_dates(cert, context)
        _warn_if_open(key, "--tls-key")
    token = None if token_file is None else _token(token_file)
    return Security(cert, key, client_ca, token)


def check_reach(address: Address, security: Security, insecure: bool, flag: str) -> None:
    """Raise RuntimeFault where anybody on the network could use the server unasked."""
    if address.loopback or insecure or security.client_ca is not None or security.token is not None:
        return
    raise RuntimeFault(
        f"{flag} {address} is open to the network, and nothing says who may call: give "
        "--tls-cert, --tls-key and --tls-client-ca, or --token-file, or say --insecure"
    )


class TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers UNAUTHENTICATED to every call without the token, before its message is read."""

    def __init__(self, security: Security) -> None:
        """Guard with the token of `security`."""
        self._admits = security.admits
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of the call, or the one that refuses."""
        if not details.method.startswith(EXEMPT):
            given = next((v for k, v in details.invocation_metadata if k == "authorization"), None)
            if not self._admits(given):
                return self._refusal
        return await continuation(details)


async def _refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "expected the agent's token in the metadata: 'authorization: Bearer TOKEN'",
    )


def _context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """A server's context. Raises RuntimeFault where files are absent, encrypted or do not match."""
    for path, flag in ((cert, "--tls-cert"), (key, "--tls-key"), (client_ca, "--tls-client-ca")):
        if path is not None:
            _read(path, flag)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        what = (
            f"--tls-key {key} is not the key of --tls-cert {cert}"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"expected a certificate and its key as PEM in --tls-cert {cert} and --tls-key "
            f"{key}: {error.reason or 'not PEM'}"
        )
        raise RuntimeFault(what) from error
    except _EncryptedError as error:
        raise RuntimeFault(
            f"--tls-key {key} is encrypted, and nobody can type its password: decrypt it with "
            "`openssl pkey` and keep it readable for the agent alone"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise RuntimeFault(
                f"--tls-client-ca {client_ca} holds no certificate as PEM"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _EncryptedError(Exception):
    """The key asks for a password."""


def _no_password() -> str:
    raise _EncryptedError


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RuntimeFault(f"cannot read {flag} {path}: {error.strerror}") from error


def _token(path: Path) -> bytes:
    token = _read(path, "--token-file").strip()
    if not token or not all(0x21 <= byte <= 0x7E for byte in token):
        raise RuntimeFault(
            f"--token-file {path}: expected one line of printable ASCII without spaces; make one "
            "with: openssl rand -hex 32"
        )
    if len(token) < WORTH_GUESSING:
        log.warning("the token is short enough to be guessed", extra={"file": str(path)})
    _warn_if_open(path, "--token-file")
    return token


def _warn_if_open(path: Path, flag: str) -> None:
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        log.warning(
            "every user of this machine can read or change a secret; chmod 600",
            extra={"file": str(path), "flag": flag},
        )


def _warn_of_dates(cert: Path, server: ssl.SSLContext) -> None:
    """Warn where the certificate is outside its dates, found by a handshake with ourselves.

    The standard library reads the dates of a certificate only as the peer of a connection.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # ours is trusted, whoever signed it
    client.load_verify_locations(cert)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up)
    for side in (theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in OUTSIDE_ITS_DATES:
                log.warning(
                    f"the certificate {OUTSIDE_ITS_DATES[error.verify_code]}; callers will not "
                    "trust it",
                    extra={"file": str(cert)},
                )
            return

"""The port that Prometheus reads: GET /metrics over HTTP or HTTPS, in threads of its own."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address
from runtime.serving.security import Security

PATH = "/metrics"
PATIENCE_S = 10.0  # for a client that says nothing, in the middle of a handshake too
CONNECTIONS = 16


class MetricsServer:
    """Runs from its making until `close`."""

    def __init__(self, address: Address, registry: CollectorRegistry, security: Security) -> None:
        """Listen and answer. Raises RuntimeFault where the port is taken or no port at all."""
        if address.path is not None:
            raise RuntimeFault(f"--metrics: expected HOST:PORT, got '{address}'")
        try:
            self._server = _Server(address, registry, security)
        except OSError as error:
            raise RuntimeFault(
                f"--metrics: cannot listen on {address}: {error.strerror}; choose another port"
            ) from error
        self.address = address.at(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a scrape that is under way ends with its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: Address, registry: CollectorRegistry, security: Security) -> None:
        self.address_family = address.family
        self.registry, self.security = registry, security
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((address.host, address.port), _Handler)
        context = security.context()
        if context is not None:
            self.socket = context.wrap_socket(
                # The handshake happens at the first read, in the thread of its connection.
                self.socket, server_side=True, do_handshake_on_connect=False
            )  # fmt: skip

    def server_bind(self) -> None:
        """Without the look-up of our own name, which can take seconds where there is no DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        request.settimeout(PATIENCE_S)
        super().shutdown_request(request)

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """A scraper that goes away or fails its handshake is no event of ours."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: _Server
    server_version, sys_version = "edgevit", ""

    def do_GET(self) -> None:
        """The numbers, to those who may see them."""
        if not self.server.security.admits(self.headers.get("Authorization")):
            self.send_response(HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", "Bearer")
            self._end(b"")
            return
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"the metrics are at {PATH}")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self._end(encode(self.server.registry))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""

    def _end(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

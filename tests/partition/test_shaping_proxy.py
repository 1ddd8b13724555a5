"""The user-space link that the tests of slow and broken networks stand on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from shaping_proxy import BLACKHOLE, DROP, PASS, RESET, Pipe, Proxy, proxied

WAIT_S = 10.0


@contextmanager
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(ours: socket.socket) -> None:
            with ours:
                try:
                    while data := ours.recv(1 << 16):
                        ours.sendall(data)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    ours, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(ours,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def there_and_back(ours: socket.socket, size: int) -> float:
    """Seconds until everything that was sent has come back as it was."""
    data = bytes(i % 251 for i in range(size))
    begun, got = time.monotonic(), b""
    ours.sendall(data)
    while len(got) < size:
        more = ours.recv(1 << 16)
        assert more, "cut"
        got += more
    assert got == data
    return time.monotonic() - begun


def test_every_byte_is_charged_there_and_back() -> None:
    with echo() as target, proxied(target, (Pipe(4e6),), (Pipe(1e6),)) as proxy:
        with connect(proxy) as ours:
            for size in (500, 20_000):
                assert there_and_back(ours, size) >= 8 * size / 1e6 - 0.001
        assert proxy.bytes == {"up": 20_500, "down": 20_500}


def test_a_pipe_may_become_slower_and_faster() -> None:
    """Also for connections that are there already."""
    pipe = Pipe()
    with echo() as target, proxied(target, (pipe,)) as proxy, connect(proxy) as ours:
        there_and_back(ours, 40_000)
        pipe.rate = 1e6
        assert there_and_back(ours, 40_000) >= 0.319
        pipe.rate = None
        assert there_and_back(ours, 4_000_000) < 16  # and not 32


def test_connections_share_a_pipe() -> None:
    """Both have to wait for the bytes of both, but for what is given its turn early."""
    pipe, took = Pipe(1e6), []
    with echo() as target, ExitStack() as stack:
        both = [stack.enter_context(proxied(target, (pipe,))) for _ in range(2)]
        ours = [stack.enter_context(connect(proxy)) for proxy in both]
        threads = [
            threading.Thread(target=lambda one=one: took.append(there_and_back(one, 40_000)))
            for one in ours
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(took) >= 0.62 and min(took) > 0.4


def test_delay_is_added_each_way_and_does_not_narrow_the_link() -> None:
    with echo() as target, proxied(target, (Pipe(8e6),)) as proxy, connect(proxy) as ours:
        proxy.delay_s = 0.1
        assert there_and_back(ours, 1) >= 0.2
        # One after the other with the delay before each, its 70 pieces would take seven seconds.
        assert there_and_back(ours, 140_000) < 3.5


def test_a_black_hole_gives_back_what_went_in() -> None:
    with echo() as target, proxied(target) as proxy, connect(proxy) as ours:
        there_and_back(ours, 10)
        proxy.set(BLACKHOLE)
        threading.Timer(0.5, proxy.set, [PASS]).start()
        assert there_and_back(ours, 10) >= 0.4


def test_what_is_dropped_is_lost_and_its_connection_with_it() -> None:
    with echo() as target, proxied(target) as proxy:
        with connect(proxy) as ours:
            there_and_back(ours, 10)
            proxy.set(DROP)
            time.sleep(0.1)
            ours.sendall(b"lost")
            ours.settimeout(0.3)
            with pytest.raises(TimeoutError):
                ours.recv(1)
            proxy.set(PASS)
            ours.settimeout(WAIT_S)
            with pytest.raises(ConnectionResetError):
                ours.recv(1)
        with connect(proxy) as ours:
            there_and_back(ours, 10)


def test_connections_are_reset() -> None:
    with echo() as target, proxied(target) as proxy, connect(proxy) as ours:
        there_and_back(ours, 10)
        proxy.set(RESET)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)

"""A TCP proxy that does what networks do: passes, delays, swallows, cuts."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PASS, BLACKHOLE, RESET = "pass", "blackhole", "reset"
PIECE = 1 << 16
NO_LINGER = struct.pack("ii", 1, 0)  # a close is a reset then


class Proxy:
    """Sends what comes to `target`, as `mode` says; delay_s is added to every piece each way.

    In a black hole connections stay and nothing arrives until it passes again.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.delay_s = 0.0
        self._mode = PASS
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, up: threading.Event, over: asyncio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._passes = asyncio.Event()
        self._passes.set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        up.set()
        await over.wait()
        server.close()
        self._cut()

    def set(self, mode: str) -> None:
        """Change what happens to what is under way and to what comes."""
        self._loop.call_soon_threadsafe(self._set, mode)

    def _set(self, mode: str) -> None:
        self._mode = mode
        if mode == BLACKHOLE:
            self._passes.clear()
        else:
            self._passes.set()
        if mode == RESET:
            self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()

    async def _connection(self, ours: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.add(back)
        try:
            await self._passes.wait()
            if self._mode == RESET:
                self._cut()
                return
            host, _, port = self.target.rpartition(":")
            theirs, forth = await asyncio.open_connection(host, int(port))
            self._writers.add(forth)
            pumps = {
                asyncio.create_task(self._pump(ours, forth)),
                asyncio.create_task(self._pump(theirs, back)),
            }
            _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            forth.close()
            self._writers.discard(forth)
        except OSError:
            return
        finally:
            self._writers.discard(back)
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._passes.wait()
                writer.write(data)
                await writer.drain()


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in a thread of its own until the block ends."""
    proxy, up = Proxy(target), threading.Event()
    made: list[asyncio.Event] = []

    async def run() -> None:
        made.append(asyncio.Event())
        await proxy.serve(up, made[0])
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(made[0].set)
        thread.join(10)

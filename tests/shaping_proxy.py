"""A TCP proxy that does what networks do: passes at a certain speed, delays, swallows, drops, cuts.

It needs no rights and no kernel module, and unlike a token bucket it charges every byte.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

PASS, BLACKHOLE, DROP, RESET = "pass", "blackhole", "drop", "reset"
LARGEST, SMALLEST = 1 << 16, 1448  # bytes that go on together
PIECE_S = 0.002  # of a pipe's time that they take, between these
AHEAD_S = 0.1  # so early is a piece given its turn, for on a busy machine timers are late
LINE = 256  # pieces on their way in one connection
NO_LINGER = struct.pack("ii", 1, 0)  # a close is a reset then

Queue = asyncio.Queue[tuple[float, bytes]]


class Pipe:
    """One direction of a cable: rate in bit/s, None for no limit. Several proxies may share it."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    @property
    def piece(self) -> int:
        """Bytes that go on together, so that connections get their turns."""
        if self.rate is None:
            return LARGEST
        return min(LARGEST, max(SMALLEST, int(self.rate / 8 * PIECE_S)))

    def passed_at(self, size: int, since: float) -> float:
        """When so many bytes that came at `since` are through, after all before them."""
        if self.rate is None:
            return since
        with self._lock:
            self._free_at = max(since, self._free_at) + 8 * size / self.rate
            return self._free_at


class Proxy:
    """Sends what comes to `target`, as `mode` says; delay_s is added to every piece each way.

    up and down are the pipes on the way to the target and back. In a black hole connections stay
    and nothing arrives until it passes again. What is dropped is lost, and its connection is cut as
    soon as it passes again. `bytes` counts what was passed on each way.
    """

    def __init__(self, target: str, up: tuple[Pipe, ...] = (), down: tuple[Pipe, ...] = ()) -> None:
        self.target = target
        self.address = ""
        self.delay_s = 0.0
        self.up, self.down = up, down
        self.bytes = {"up": 0, "down": 0}
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
        lossy, self._mode = self._mode == DROP, mode
        if mode == BLACKHOLE:
            self._passes.clear()
        else:
            self._passes.set()
        if mode == RESET or (lossy and mode != DROP):
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
            there: Queue = asyncio.Queue(LINE)
            here: Queue = asyncio.Queue(LINE)
            work = {
                asyncio.create_task(self._take(ours, self.up, there)),
                asyncio.create_task(self._give("up", there, forth)),
                asyncio.create_task(self._take(theirs, self.down, here)),
                asyncio.create_task(self._give("down", here, back)),
            }
            _, left = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            forth.close()
            self._writers.discard(forth)
        except (OSError, asyncio.CancelledError):  # asyncio would log that it was cancelled
            return
        finally:
            self._writers.discard(back)
            back.close()

    async def _take(
        self, reader: asyncio.StreamReader, pipes: tuple[Pipe, ...], line: Queue
    ) -> None:
        """Read, and put it on the line with the time when it arrives; at the end an empty piece."""
        data = b"begin"
        with suppress(OSError):
            while data:
                data = await reader.read(LARGEST)
                since, left = monotonic(), memoryview(data)
                while True:
                    size = min((pipe.piece for pipe in pipes), default=LARGEST)
                    piece, left = bytes(left[:size]), left[size:]
                    at = since
                    for pipe in pipes:
                        at = pipe.passed_at(len(piece), at)
                    await asyncio.sleep(at - AHEAD_S - monotonic())
                    await line.put((at + self.delay_s, piece))
                    if not left:
                        break
        await asyncio.Event().wait()  # until what is on the line was given, which ends both

    async def _give(self, way: str, line: Queue, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                at, data = await line.get()
                await asyncio.sleep(at - monotonic())
                await self._passes.wait()
                if not data:
                    return
                if self._mode == DROP:
                    continue
                self.bytes[way] += len(data)
                writer.write(data)
                await writer.drain()


@contextmanager
def proxied(target: str, up: tuple[Pipe, ...] = (), down: tuple[Pipe, ...] = ()) -> Iterator[Proxy]:
    """A proxy in a thread of its own until the block ends."""
    proxy, ready = Proxy(target, up, down), threading.Event()
    made: list[asyncio.Event] = []

    async def run() -> None:
        made.append(asyncio.Event())
        await proxy.serve(ready, made[0])
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(made[0].set)
        thread.join(10)

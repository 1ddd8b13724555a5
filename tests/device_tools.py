"""The DeviceService alone on a real gRPC server, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest

from runtime.serving.limits import Limits
from runtime.serving.services.device import DeviceService
from runtime.serving.storage.store import Store
from runtime.wire.bundle_plan import BundlePlan, chunks, plan_of
from runtime.wire.descriptors import DEVICE, methods
from runtime.wire.service import call, handler

T = TypeVar("T")
LIMIT_S = 120


@dataclass
class Line:
    """A line of the models' index."""

    name: str
    digest: str
    target: str = "tflite"
    precision: str = "fp32"
    state: str = "READY"
    reason: str = ""
    threads: int = 1
    queued: int = 0


@dataclass
class Models:
    """Which models an agent has loaded: here, those that the test says."""

    lines: list[Line] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    def index(self) -> list[Line]:
        return self.lines

    def in_use(self, digest: str) -> list[str]:
        return [line.name for line in self.lines if line.digest == digest]

    def loaded(self) -> list[Models]:
        return [self]

    def worker_pids(self) -> list[int]:
        return self.pids


class Device:
    """The calls of the service on a channel."""

    def __init__(self, channel: Any, server: Any = None, blocking: Any = None) -> None:
        self._channel, self.server, self._blocking = channel, server, blocking

    def __call__(self, method: str, requests: Any = None, /, **fields: Any) -> Any:
        """Start a call: a message of `fields`, or a client's stream."""
        made = methods(DEVICE)[method]
        request = made.request(**fields) if requests is None else requests
        return call(self._channel, made)(request, timeout=LIMIT_S)

    async def send(self, messages: Iterable[Any]) -> Any:
        """UploadBundle by the blocking client.

        That of grpc.aio loses the status of an answer that comes while it still sends
        (grpc/grpc#36066).
        """
        ask = call(self._blocking, methods(DEVICE)["UploadBundle"])
        return await asyncio.to_thread(lambda: ask(iter(messages), timeout=LIMIT_S))

    async def upload(self, path: Path, name: str = "", size: int = 4096) -> Any:
        """Ask what is there and send the rest."""
        plan = plan_of(path)
        held = await held_of(self, plan)
        return await self("UploadBundle", stream(chunks(plan, path, held, size, name)))


async def held_of(device: Device, plan: BundlePlan) -> dict[str, int]:
    """Bytes of each file that came so far."""
    status = await device("UploadStatus", digest=plan.digest)
    return {held.path: held.bytes for held in status.held}


async def stream(messages: Any) -> AsyncIterator[Any]:
    """Messages, as a client's stream."""
    for message in messages:
        yield message


@asynccontextmanager
async def serving(store: Store, limits: Limits | None = None, **more: Any) -> AsyncIterator[Device]:
    """A server with this service on the loopback, and a channel to it."""
    limits = limits or Limits()
    service = DeviceService(store, more.pop("models", None) or Models(), limits, "board", **more)
    options = [("grpc.max_receive_message_length", limits.message_bytes), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((handler(DEVICE, service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as blocking:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Device(channel, server, blocking)
    finally:
        await server.stop(5)


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a test's coroutine, with a bound on its time."""
    return asyncio.run(asyncio.wait_for(main(), LIMIT_S))


async def answer_of(started: Any) -> Any:
    """The error that a call is answered with."""
    with pytest.raises(grpc.RpcError) as caught:
        await started
    return caught.value


async def until(check: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something holds; fails after `seconds`."""
    end = asyncio.get_running_loop().time() + seconds
    while not check():
        assert asyncio.get_running_loop().time() < end, "it never came to hold"
        await asyncio.sleep(0.02)

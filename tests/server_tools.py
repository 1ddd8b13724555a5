"""Services of the agent on a real server inside the test's own event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from runtime.serving.addresses import parse_address
from runtime.serving.grpc_server import bind, make_server
from runtime.serving.limits import Limits
from runtime.serving.security import Security
from runtime.wire.descriptors import methods
from runtime.wire.service import call, handler

PATIENCE_S = 30.0


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure."""
    asyncio.run(asyncio.wait_for(work, 4 * PATIENCE_S))


@asynccontextmanager
async def served(
    services: dict[str, Any],
    *,
    listen: str = "127.0.0.1:0",
    security: Security | None = None,
    limits: Limits | None = None,
    channel_credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[Any]:
    """A server of these services, by name, and a channel to it."""
    security = security or Security()
    server = make_server(limits or Limits(), security)
    server.add_generic_rpc_handlers([handler(*each) for each in services.items()])
    address = str(bind(server, parse_address(listen), security))
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channel = (
        grpc.aio.insecure_channel(address, options)
        if channel_credentials is None
        else grpc.aio.secure_channel(address, channel_credentials, options)
    )
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)


def calls_of(channel: Any, service: str) -> Callable[..., Any]:
    """ask('Name', field=...) begins a call and gives it."""

    def ask(
        name: str,
        requests: Any = None,
        /,
        metadata: Any = None,
        timeout: float = PATIENCE_S,
        **fields: Any,
    ) -> Any:
        method = methods(service)[name]
        begin = call(channel, method)
        return begin(requests or method.request(**fields), timeout=timeout, metadata=metadata)

    return ask


async def refusal(answer: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """Code and details of a call that is refused; an answer is a failure of the test."""
    try:
        got = await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"expected a refusal, got {str(got)[:300]}")


async def until(check: Callable[[], object]) -> None:
    """Wait until `check` gives something true."""
    end = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.01)

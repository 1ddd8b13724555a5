"""ModelStreamInfer: many requests of one caller over one call, answered in their order.

A call of gRPC costs the agent more than a message of one that is open already, and a coordinator
asks for one small answer after the other. Requests run side by side, so that they share batches as
those of ModelInfer do; an error is the answer to one request and leaves the others alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio

from runtime.serving.ending import first_of
from runtime.wire.descriptors import INFERENCE, Message, methods
from runtime.wire.refused import unavailable
from runtime.wire.service import as_refused
from runtime.wire.streamed import answer_of, refusal_of, timeout_of

Context = grpc.aio.ServicerContext[Any, Any]
Infer = Callable[[Message, float | None], Awaitable[Message]]

MOST = 128  # requests of one stream that are not answered yet; no more are read meanwhile
PATH = methods(INFERENCE)["ModelStreamInfer"].path


async def answer_in_order(
    requests: AsyncIterator[Message], context: Context, infer: Infer, ending: asyncio.Event
) -> None:
    """Answer until the caller has no more to ask, or `ending` is set; what was asked is answered.

    infer takes a request and the seconds that it may take. Raises Refused where the agent ends, and
    what reading raises.
    """
    turns: deque[asyncio.Task[None]] = deque()

    async def read() -> None:
        last = None
        async for request in requests:
            while turns and turns[0].done():
                turns.popleft()
            if len(turns) >= MOST:
                await asyncio.wait({turns[0]})
            last = asyncio.create_task(_answer(request, last, context, infer))
            turns.append(last)

    reading = asyncio.create_task(read())
    try:
        await first_of(reading, ending)
        if not reading.cancelled():
            reading.result()
        if turns:
            await asyncio.wait({turns[-1]})
        if ending.is_set():
            raise unavailable("the agent is ending")
    finally:
        reading.cancel()
        for turn in turns:
            turn.cancel()
        await asyncio.gather(reading, *turns, return_exceptions=True)


async def _answer(
    request: Message, before: asyncio.Task[None] | None, context: Context, infer: Infer
) -> None:
    """Run a request, and answer it after the one before it."""
    try:
        answer = answer_of(await infer(request, timeout_of(request)))
    except Exception as error:
        answer = refusal_of(request, as_refused(error, PATH))
    if before is not None and not before.done():
        await asyncio.wait({before})
    await context.write(answer)

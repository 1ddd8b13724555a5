"""One ModelStreamInfer to a worker: requests go out one behind the other, answers come back by id.

A message of a call that is open costs both ends less than a call of its own. What it lacks is here:
each request has its own deadline, and one that nobody waits for any more is not sent if it was not
yet. What was sent cannot be taken back; the worker drops it where its time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from partition.serving.worker_reply import BadInput, NoReply
from runtime.wire.descriptors import INFERENCE, Message, message, methods
from runtime.wire.input_ref import ABOUT_INPUT
from runtime.wire.refused import Refused
from runtime.wire.streamed import put_timeout, read_answer

Request = Callable[[bytes], bytes]


class WorkerStream:
    """An open stream. Of one event loop, and of one lease."""

    def __init__(
        self, channel: Any, metadata: tuple[tuple[str, str], ...], patience_s: float
    ) -> None:
        """patience_s is the longest that the last answers are waited for after close()."""
        call = channel.stream_stream(
            _METHOD.path, response_deserializer=_METHOD.response.FromString
        )
        self._call = call(metadata=metadata)
        self._patience_s = patience_s
        self._keys = map(str, count())
        self._answers: dict[str, asyncio.Future[tuple[Message, int]]] = {}
        self._unsent: dict[str, tuple[Request, bytes]] = {}
        self._more = asyncio.Event()
        self._closing = False
        self._lost: NoReply | None = None
        self._tell_lost: Callable[[NoReply], None] = _unheard
        self._reading = asyncio.create_task(self._read())
        self._writing = asyncio.create_task(self._write())

    def subscribe(self, lost: Callable[[NoReply], None]) -> None:
        """Call `lost` where the stream ends and close() was not called before."""
        self._tell_lost = lost

    def close(self) -> None:
        """Send what waits, let the worker answer, and end; at once where there is nothing."""
        if self._closing:
            return
        self._closing = True
        if self._answers:
            asyncio.get_running_loop().call_later(self._patience_s, self._call.cancel)
            self._more.set()
        else:
            self._call.cancel()

    async def ask(self, request: Request, timeout_s: float) -> tuple[Message, int]:
        """The worker's ModelInferResponse, and perf_counter_ns() of when it came.

        request makes the bytes of a ModelInferRequest from those that go before all others. Raises
        NoReply, BadInput where it is the input that the worker refuses.
        """
        if self._lost is not None:
            raise self._lost.again()
        key, loop = next(self._keys), asyncio.get_running_loop()
        about = _REQUEST(id=key)
        put_timeout(about, timeout_s)
        answer: asyncio.Future[tuple[Message, int]] = loop.create_future()
        self._answers[key] = answer
        self._unsent[key] = request, about.SerializeToString()
        self._more.set()
        timer = loop.call_later(timeout_s, _late, answer)
        try:
            return await answer
        finally:
            timer.cancel()
            if answer.done() and not answer.cancelled():
                answer.exception()  # also where the caller went at the same moment
            del self._answers[key]
            self._unsent.pop(key, None)

    async def _write(self) -> None:
        # The reader says why the stream has ended.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                while self._unsent:
                    request, about = self._unsent.pop(next(iter(self._unsent)))
                    await self._call.write(request(about))
                if self._closing:
                    await self._call.done_writing()
                    return
                self._more.clear()
                await self._more.wait()

    async def _read(self) -> None:
        lost = NoReply("the connection was closed", grpc.StatusCode.CANCELLED)
        try:
            async for streamed in self._call:
                self._take(streamed)
            lost = NoReply("its agent has ended the stream", grpc.StatusCode.UNAVAILABLE)
        except grpc.aio.AioRpcError as error:
            lost = NoReply(error.details() or error.code().name, error.code())
        finally:
            self._lost = lost
            self._writing.cancel()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(lost.again())
            if not self._closing:
                self._tell_lost(lost)

    def _take(self, streamed: Message) -> None:
        answer = self._answers.get(streamed.infer_response.id)
        if answer is None or answer.done():  # it came too late
            return
        try:
            answer.set_result((read_answer(streamed), perf_counter_ns()))
        except Refused as error:
            kind = BadInput if error.about == ABOUT_INPUT else NoReply
            answer.set_exception(kind(str(error), error.code))


def _late(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        late = grpc.StatusCode.DEADLINE_EXCEEDED
        answer.set_exception(NoReply("it gave no answer in time", late))


def _unheard(lost: NoReply) -> None:
    """Nobody has asked to be told."""


_METHOD = methods(INFERENCE)["ModelStreamInfer"]
_REQUEST = message("inference.ModelInferRequest")

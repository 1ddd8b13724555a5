"""One sub-model on one device, as the coordinator sees it: leased, asked, doubted, revoked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from partition.serving.ensemble import Artifact, Member
from partition.serving.recent import RecentTimes
from partition.serving.request_bytes import Asked
from partition.serving.worker_reply import BadInput, NoReply, Reply, StrangeReply, read_reply
from partition.serving.worker_stream import WorkerStream
from runtime.wire.descriptors import Message
from runtime.wire.input_ref import ABOUT_INPUT
from runtime.wire.refused import ABOUT

log = logging.getLogger(__name__)

NOTE_S = 10.0  # between two lines of the log about the inputs of one worker
# The agent has no such model, or another one than was leased: it is to be asked anew.
NOT_AS_LEASED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
)


@dataclass(frozen=True)
class Lease:
    """The right to ask a worker: who it was when it was checked, over which connection.

    generation is one more with every start of the agent. It ends with the connection. infer is the
    unary call, for what may have to be taken back; stream is None where the agent has none.
    """

    device_id: str
    generation: int
    model: str
    head: bytes
    artifact: Artifact
    infer: Any
    stream: WorkerStream | None
    metadata: tuple[tuple[str, str], ...]

    def close(self) -> None:
        """Ask no more; what was asked is still answered."""
        if self.stream is not None:
            self.stream.close()


class WorkerLink:
    """Who asks holds a lease; without one the reason says why there is none.

    `doubt` is called where the device may have gone, `recheck` where the lease was taken away.
    """

    def __init__(
        self,
        member: Member,
        place: str,
        patience_s: float,
        doubt: Callable[[], None],
        recheck: Callable[[], None],
    ) -> None:
        self.member, self.place = member, place
        self.lease: Lease | None = None
        self.reason = "it was not reached yet"
        self.times = self._latest = RecentTimes()
        self._sensed_times = RecentTimes()
        self.heard_s = 0.0  # of the event loop's clock
        self._patience_s = patience_s
        self._doubt, self._recheck = doubt, recheck
        self._noted_s = -NOTE_S  # when it was logged last that it could not answer to its input

    @property
    def name(self) -> str:
        """As logs and answers call it."""
        return f"{self.member.name}@{self.place}"

    def grant(self, lease: Lease) -> None:
        """From now on it may be asked."""
        self.lease, self.reason = lease, ""
        if lease.stream is not None:
            lease.stream.subscribe(partial(self._stream_lost, lease))
        facts = {
            "submodel": self.member.name, "device": self.place, "device_id": lease.device_id,
            "generation": lease.generation, "model": lease.model,
        }  # fmt: skip
        log.info("worker is in", extra=facts)

    def revoke(self, reason: str) -> None:
        """It is not asked until it was checked anew."""
        lease, self.lease = self.lease, None
        if lease is not None or reason != self.reason:
            facts = {"submodel": self.member.name, "device": self.place, "reason": reason}
            log.warning("worker is out", extra=facts)
        self.reason = reason
        if lease is not None:
            lease.close()
            self._recheck()

    def times_of(self, asked: Asked) -> RecentTimes:
        """How long it takes for such: a picture has to get there, and over a slow link that is all.

        `times` are those of pictures.
        """
        return self._sensed_times if asked.sensed else self.times

    def facts(self, usable: bool) -> dict[str, Any]:
        """What ModelMetadata tells of it, for JSON; None is what is not known.

        p50_us is of its last answers, to pictures or to names; last_heard_s the seconds since
        anything came from its agent.
        """
        lease, median_s = self.lease, self._latest.median
        heard = asyncio.get_running_loop().time() - self.heard_s if self.heard_s else None
        return {
            "usable": usable,
            "reason": self.reason,
            "p50_us": None if median_s is None else round(median_s * 1e6),
            "last_heard_s": None if heard is None else round(heard, 3),
            "generation": lease.generation if lease else None,
            "model": lease.model if lease else None,
        }

    async def ask(self, asked: Asked, timeout_s: float, hedged: bool = False) -> Reply:
        """Its block for what is asked. Raises NoReply; timeout_s is the worker's deadline.

        One of several that are asked is `hedged`: it is told where its answer is not wanted any
        more, which a stream cannot.
        """
        lease = self.lease
        if lease is None:
            raise NoReply(self.reason)
        try:
            reply = await self.ask_with(lease, asked, timeout_s, hedged)
        except NoReply as error:
            if isinstance(error, BadInput):
                self._note_input(str(error))
            elif self.lease is lease:
                self._judge(error, timeout_s)
            raise
        self._latest = self.times_of(asked)
        self._latest.add(reply.elapsed_us / 1e6)
        return reply

    async def ask_with(
        self, lease: Lease, asked: Asked, timeout_s: float, hedged: bool = False
    ) -> Reply:
        """The same with a lease that was not granted yet, and without consequences."""
        spec = lease.artifact.input
        begun = perf_counter_ns()
        if lease.stream is None or hedged:
            response = await _call(lease, asked.request(lease.head, spec), timeout_s)
            ended = perf_counter_ns()
        else:
            response, ended = await lease.stream.ask(
                lambda about: asked.request(lease.head + about, spec), timeout_s
            )
        self.heard_s = asyncio.get_running_loop().time()
        member, elapsed_us = self.member, (ended - begun) // 1000
        return read_reply(response, member.digest, asked.rows, member.width, self.place, elapsed_us)

    def _stream_lost(self, lease: Lease, error: NoReply) -> None:
        if self.lease is lease:
            self.revoke(str(error))

    def _note_input(self, reason: str) -> None:
        """Log that there is nothing to look at, but not for every picture of a camera."""
        now = asyncio.get_running_loop().time()
        if now - self._noted_s >= NOTE_S:
            self._noted_s = now
            facts = {"submodel": self.member.name, "device": self.place, "reason": reason}
            log.warning("worker cannot answer to its input", extra=facts)

    def _judge(self, error: NoReply, timeout_s: float) -> None:
        """What a failed call means for the next ones."""
        if isinstance(error, StrangeReply) or error.code in NOT_AS_LEASED:
            self.revoke(str(error))
        elif error.code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s >= self._patience_s:
            self.revoke(f"it gave no answer within {timeout_s:g} s")
        elif error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # which is an answer
            self._doubt()


async def _call(lease: Lease, data: bytes, timeout_s: float) -> Message:
    """The answer to a call of its own. Raises NoReply."""
    try:
        return await lease.infer(data, timeout=timeout_s, metadata=lease.metadata)
    except grpc.aio.AioRpcError as error:
        kind = BadInput if _about_input(error) else NoReply
        raise kind(error.details() or error.code().name, error.code()) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        closed = grpc.StatusCode.CANCELLED  # gRPC's own way to say that the channel is closed
        raise NoReply("the connection was closed", closed) from None


def _about_input(error: grpc.aio.AioRpcError) -> bool:
    """Whether it is the input that an agent refuses, and not the model or the call."""
    metadata: Any = error.trailing_metadata()
    return metadata is not None and metadata.get(ABOUT) == ABOUT_INPUT

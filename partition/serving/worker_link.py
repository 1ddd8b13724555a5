"""One sub-model on one device, as the coordinator sees it: leased, asked, doubted, revoked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from partition.serving.ensemble import Artifact, Member
from partition.serving.recent import RecentTimes
from partition.serving.request_bytes import PictureBytes
from partition.serving.worker_reply import NoReply, Reply, StrangeReply, read_reply

log = logging.getLogger(__name__)

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

    generation is one more with every start of the agent. It ends with the connection.
    """

    device_id: str
    generation: int
    model: str
    head: bytes
    artifact: Artifact
    infer: Any
    metadata: tuple[tuple[str, str], ...]


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
        self.times = RecentTimes()
        self.heard_s = 0.0  # of the event loop's clock
        self._patience_s = patience_s
        self._doubt, self._recheck = doubt, recheck

    @property
    def name(self) -> str:
        """As logs and answers call it."""
        return f"{self.member.name}@{self.place}"

    def grant(self, lease: Lease) -> None:
        """From now on it may be asked."""
        self.lease, self.reason = lease, ""
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
            self._recheck()

    async def ask(self, pictures: PictureBytes, timeout_s: float) -> Reply:
        """Its block for these pictures. Raises NoReply; timeout_s is the worker's deadline."""
        lease = self.lease
        if lease is None:
            raise NoReply(self.reason)
        try:
            reply = await self.ask_with(lease, pictures, timeout_s)
        except NoReply as error:
            if self.lease is lease:
                self._judge(error, timeout_s)
            raise
        self.times.add(reply.elapsed_us / 1e6)
        return reply

    async def ask_with(self, lease: Lease, pictures: PictureBytes, timeout_s: float) -> Reply:
        """The same with a lease that was not granted yet, and without consequences."""
        data = pictures.request(lease.head, lease.artifact.input)
        begun = perf_counter_ns()
        try:
            response = await lease.infer(data, timeout=timeout_s, metadata=lease.metadata)
        except grpc.aio.AioRpcError as error:
            raise NoReply(error.details() or error.code().name, error.code()) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            closed = grpc.StatusCode.CANCELLED  # gRPC's own way to say that the channel is closed
            raise NoReply("the connection was closed", closed) from None
        elapsed_us = (perf_counter_ns() - begun) // 1000
        self.heard_s = asyncio.get_running_loop().time()
        member = self.member
        return read_reply(
            response, member.digest, pictures.rows, member.width, self.place, elapsed_us
        )

    def _judge(self, error: NoReply, timeout_s: float) -> None:
        """What a failed call means for the next ones."""
        if isinstance(error, StrangeReply) or error.code in NOT_AS_LEASED:
            self.revoke(str(error))
        elif error.code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s >= self._patience_s:
            self.revoke(f"it gave no answer within {timeout_s:g} s")
        elif error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # which is an answer
            self._doubt()

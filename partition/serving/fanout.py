"""One request to all sub-models at once: deadlines, hedges to replicas, and what came back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from partition.serving.device_link import DeviceLink
from partition.serving.ensemble import Ensemble, Member
from partition.serving.request_bytes import Asked
from partition.serving.worker_link import WorkerLink
from partition.serving.worker_reply import BadInput, NoReply, Reply
from runtime.wire.refused import Refused

HEDGE_AFTER = 0.95  # of a worker's recent times
FIRST_HEDGE_S = 0.1  # while too little is known of them
LEAST_HEDGE_S = 0.002


class Watcher(Protocol):
    """Counts what happens to the calls to workers."""

    def worker(self, submodel: str, device: str, status: str, elapsed_us: int) -> None:
        """A call to a worker ended: 'OK', a gRPC status, 'STRANGE' or 'CANCELLED'."""
        ...

    def hedge(self, submodel: str) -> None:
        """A replica was asked because the worker before it took long or failed."""
        ...


@dataclass(frozen=True)
class Gathered:
    """The blocks side by side (rows, width), zeros where a sub-model is missing.

    replies are by sub-model, missing maps the others to the reasons. elapsed_us is of all of it.
    """

    blocks: NDArray[np.float32]
    replies: Mapping[str, Reply]
    missing: Mapping[str, str]
    elapsed_us: int

    @property
    def straggler(self) -> tuple[str, Reply]:
        """The sub-model that answered last."""
        return max(self.replies.items(), key=lambda entry: entry[1].elapsed_us)

    @property
    def input_ages_us(self) -> list[int]:
        """How old the inputs were that workers sensed; none where they were sent one."""
        ages = (reply.input_age_us for reply in self.replies.values())
        return [age for age in ages if age is not None]


class FanOut:
    """Asks each sub-model once, and a replica where its first place is slow or gone."""

    def __init__(
        self, ensemble: Ensemble, devices: Mapping[str, DeviceLink], watcher: Watcher
    ) -> None:
        self._ensemble, self._watcher = ensemble, watcher
        self._places: list[tuple[Member, list[tuple[DeviceLink, WorkerLink]]]] = [
            (
                member,
                [(devices[place], devices[place].workers[member.name]) for place in member.places],
            )
            for member in ensemble.members
        ]

    def states(self) -> list[tuple[WorkerLink, bool]]:
        """Every worker, and whether it may be asked."""
        return [
            (worker, device.usable(worker))
            for _, places in self._places
            for device, worker in places
        ]

    def any_usable(self) -> bool:
        """Whether there can be an answer at all."""
        return any(_usable(places) for _, places in self._places)

    async def gather(self, asked: Asked, timeout_s: float) -> Gathered:
        """Ask all sub-models, wait for them timeout_s at most, and put their blocks in place.

        Raises Refused: UNAVAILABLE where no sub-model answered, DEADLINE_EXCEEDED where none did in
        time; where none could answer to its input, with the code of them all.
        """
        begun = perf_counter_ns()
        answers = await asyncio.gather(
            *(self._ask(member, _usable(places), places, asked, timeout_s)
              for member, places in self._places)
        )  # fmt: skip
        blocks = np.zeros((asked.rows, self._ensemble.width), np.float32)
        replies: dict[str, Reply] = {}
        missing: dict[str, NoReply] = {}
        for (member, _), answer in zip(self._places, answers, strict=True):
            if isinstance(answer, Reply):
                blocks[:, member.start : member.start + member.width] = answer.block
                replies[member.name] = answer
            else:
                missing[member.name] = answer
        if not replies:
            raise self._none(missing, timeout_s)
        told = {name: str(error) for name, error in missing.items()}
        return Gathered(blocks, replies, told, (perf_counter_ns() - begun) // 1000)

    async def _ask(
        self,
        member: Member,
        workers: Sequence[WorkerLink],
        places: Sequence[tuple[DeviceLink, WorkerLink]],
        asked: Asked,
        timeout_s: float,
    ) -> Reply | NoReply:
        """The first good answer of the workers of one sub-model."""
        if not workers:
            device, worker = places[0]
            return NoReply(worker.reason or f"{device.site.name} is being asked whether it lives")
        if len(workers) == 1:
            try:
                return await self._ask_one(workers[0], asked, timeout_s)
            except NoReply as error:
                return error
        return await self._hedged(member, workers, asked, timeout_s)

    async def _hedged(
        self,
        member: Member,
        workers: Sequence[WorkerLink],
        asked: Asked,
        timeout_s: float,
    ) -> Reply | NoReply:
        """Ask one worker after the other: the next where one fails or takes longer than usual."""
        end = asyncio.get_running_loop().time() + timeout_s
        left = list(workers)
        running: dict[asyncio.Task[Reply], tuple[WorkerLink, float]] = {}
        failed: NoReply | None = None
        won = False
        try:
            while left or running:
                now = asyncio.get_running_loop().time()
                wait_s = None
                if left and now < end:
                    worker = left.pop(0)
                    if len(left) + 1 < len(workers):
                        self._watcher.hedge(member.name)
                    asking = self._ask_one(worker, asked, end - now, hedged=True)
                    task = asyncio.create_task(asking)
                    running[task] = worker, now
                    wait_s = _patience_with(worker, asked) if left else None
                elif not running:
                    break
                done, _ = await asyncio.wait(
                    running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    del running[task]
                    try:
                        reply = task.result()
                    except NoReply as error:
                        failed = error
                    else:
                        won = True
                        return reply
        finally:
            now = asyncio.get_running_loop().time()
            for task, (worker, since) in running.items():
                task.cancel()
                if won:
                    worker.times_of(asked).add(now - since)  # it took at least so long
        return failed or NoReply(
            f"no time was left to ask {member.name}", grpc.StatusCode.DEADLINE_EXCEEDED
        )

    async def _ask_one(
        self, worker: WorkerLink, asked: Asked, timeout_s: float, hedged: bool = False
    ) -> Reply:
        """Ask a worker, and count how it ended."""
        begun, status = perf_counter_ns(), "CANCELLED"
        try:
            reply = await worker.ask(asked, timeout_s, hedged)
            status = "OK"
            return reply
        except NoReply as error:
            status = error.code.name if error.code is not None else "STRANGE"
            raise
        finally:
            elapsed_us = (perf_counter_ns() - begun) // 1000
            self._watcher.worker(worker.member.name, worker.place, status, elapsed_us)

    def _none(self, missing: Mapping[str, NoReply], timeout_s: float) -> Refused:
        late = grpc.StatusCode.DEADLINE_EXCEEDED
        reasons = "; ".join(f"{name}: {error}" for name, error in missing.items())
        if all(error.code is late for error in missing.values()):
            return Refused(
                late, f"no sub-model of '{self._ensemble.name}' answered within {timeout_s:.3g} s"
            )
        if all(isinstance(error, BadInput) for error in missing.values()):
            codes = {error.code or grpc.StatusCode.UNKNOWN for error in missing.values()}
            code = codes.pop() if len(codes) == 1 else grpc.StatusCode.FAILED_PRECONDITION
            return Refused(
                code, f"no sub-model of '{self._ensemble.name}' can answer to its input: {reasons}"
            )
        return Refused(
            grpc.StatusCode.UNAVAILABLE,
            f"no sub-model of '{self._ensemble.name}' can answer now ({reasons}); try again when "
            "their devices are back",
        )


def _usable(places: Sequence[tuple[DeviceLink, WorkerLink]]) -> list[WorkerLink]:
    return [worker for device, worker in places if device.usable(worker)]


def _patience_with(worker: WorkerLink, asked: Asked) -> float:
    """Seconds after which a replica is asked too."""
    usual = worker.times_of(asked).percentile(HEDGE_AFTER)
    return FIRST_HEDGE_S if usual is None else max(usual, LEAST_HEDGE_S)

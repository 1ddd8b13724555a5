"""The agent of one device, as the coordinator sees it: found, checked, watched, and found again.

A connection is good for one lease of each sub-model: it breaks with the agent, so that an agent
that was started anew (its generation is another) is always asked who it is before it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import grpc
import grpc.aio
import numpy as np

from partition.serving.ensemble import Member, Site
from partition.serving.request_bytes import PictureBytes, request_head
from partition.serving.worker_link import Lease, WorkerLink
from partition.serving.worker_reply import NoReply
from partition.serving.worker_stream import WorkerStream
from runtime.client.channel import open_channel
from runtime.client.errors import fault_of
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE, Message, methods
from runtime.wire.service import call

log = logging.getLogger(__name__)

CONNECT_S = 1.5
PATIENTLY = 4  # one attempt in so many gets all the time there is: a far device needs it
BEAT_S = 0.5  # between two heartbeats of a device that nothing is heard of
SILENCE_S = 1.0  # of a device that answers quickly; one over a slow link gets more
CALMER = 0.9  # with every heartbeat that is answered, after one that was not
RECHECK_S = 0.5  # between two looks at a device that lacks a sub-model
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGER = 0.05, 0.3, 1.6  # between two connections
READY = "READY"
SERVING = 1  # of grpc.health.v1


class DeviceLink:
    """Keeps the leases of the sub-models of one device."""

    def __init__(self, site: Site, members: Sequence[Member], patience_s: float) -> None:
        """patience_s is how long a worker may take for an answer."""
        self.site = site
        self.workers = {
            member.name: WorkerLink(member, site.name, patience_s, self._doubt, self._recheck)
            for member in members
        }
        self.tried = asyncio.Event()  # set when it is known what the device has
        self._patience_s = patience_s
        self._changed: Callable[[], None] = _unheard
        self._doubted, self._wake, self._serving = (asyncio.Event() for _ in range(3))
        self._seen: tuple[str, int] | None = None
        self._trial_s: dict[str, float] = {}  # how long each worker took when it was tried
        self._grown_s = 0.0  # silence that is borne because a shorter one was taken for an end
        self._connected = False
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a worker comes or goes."""
        self._changed = changed

    def start(self) -> None:
        """Begin to look for the device. Raises RuntimeFault where its TLS files are not right."""
        self._open()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Give up the device."""
        for worker in self.workers.values():
            if worker.lease is not None:
                worker.lease.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def usable(self, worker: WorkerLink) -> bool:
        """Whether to ask a worker now: it has a lease, and nobody waits in vain for the device."""
        return worker.lease is not None and not self._doubted.is_set()

    def _open(self) -> Any:
        return open_channel(self.site.access, grpc.aio, [("grpc.enable_retries", 0)])

    def _doubt(self) -> None:
        """Something went wrong: not used until the next heartbeat, which is now."""
        self._doubted.set()
        self._changed()

    def _recheck(self) -> None:
        self._wake.set()
        self._changed()

    async def _keep(self) -> None:
        """Hold one connection after the other, for ever."""
        pause_s = FIRST_PAUSE_S
        for attempt in count(1):
            patient = attempt % PATIENTLY == 0
            connect_s = max(CONNECT_S, self._patience_s) if patient else CONNECT_S
            self._connected = False
            self._serving.clear()
            try:
                channel = self._open()
            except RuntimeFault as error:  # a TLS file that was changed meanwhile
                self._revoke_all(str(error))
            else:
                try:
                    # Before the channel is closed: nobody is to begin a call that cannot end.
                    self._revoke_all(await self._why_lost(channel, connect_s))
                finally:
                    await channel.close()
            self.tried.set()
            if self._connected:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * LONGER, LONGEST_PAUSE_S)

    async def _why_lost(self, channel: Any, connect_s: float) -> str:
        """Use a connection until it is lost."""
        try:
            await self._hold(channel, connect_s)
        except NoReply as error:
            return str(error)
        except grpc.aio.AioRpcError as error:
            return self._plainly(error, "Check", connect_s)
        except Exception:
            log.exception("the link to a device failed", extra={"device": self.site.name})
        return "an error of the coordinator; its log says which"

    async def _hold(self, channel: Any, connect_s: float) -> None:
        """Use one connection until it is lost, which is always raised."""
        check = call(channel, methods(HEALTH)["Check"])
        await check(_HEALTH(), timeout=connect_s)
        self._heard()
        self._connected = True
        self._doubted.clear()
        tasks = [
            asyncio.create_task(work)
            for work in (self._watch(channel), self._beat(check), self._check(channel))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, channel: Any) -> None:
        """Whether the agent takes calls; the stream breaks at once where it dies."""
        states = call(channel, methods(HEALTH)["Watch"])(_HEALTH())
        try:
            async for state in states:
                if state.status == SERVING:
                    self._serving.set()
                else:
                    self._serving.clear()
                    self._revoke_all("its agent is starting or ending")
                    self.tried.set()
        except grpc.aio.AioRpcError as error:
            raise NoReply(self._plainly(error, "Watch", 0.0)) from error
        finally:
            states.cancel()
        raise NoReply("its agent has ended")

    async def _beat(self, check: Any) -> None:
        """Notice a device that hangs, whose connection is as good as ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await _within(self._doubted.wait(), BEAT_S)
            asked, silence_s = clock(), self._longest_silence_s()
            try:
                await check(_HEALTH(), timeout=silence_s)
            except grpc.aio.AioRpcError as error:
                busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                if not busy and max(w.heard_s for w in self.workers.values()) < asked:
                    self._grown_s = 2 * silence_s
                    raise NoReply(self._plainly(error, "Check", silence_s)) from error
            else:
                self._heard()
                self._grown_s *= CALMER
            if self._doubted.is_set():
                self._doubted.clear()
                self._changed()

    async def _check(self, channel: Any) -> None:
        """Give leases to what has none."""
        while True:
            await self._serving.wait()
            self._wake.clear()
            if self._lacks():
                await self._check_once(channel)
                self.tried.set()
                self._changed()
            await _within(self._wake.wait(), RECHECK_S if self._lacks() else None)

    async def _check_once(self, channel: Any) -> None:
        """Ask the device what it has, and try each sub-model once before it is used."""
        describe = call(channel, methods(DEVICE)["Describe"])
        metadata = self.site.access.metadata()
        try:
            device = await describe(_DESCRIBE(), timeout=self._patience_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            for worker in self._lacks():
                worker.revoke(self._plainly(error, "Describe", self._patience_s))
            return
        self._note(device)
        await asyncio.gather(*(self._try(worker, device, channel) for worker in self._lacks()))

    async def _try(self, worker: WorkerLink, device: Message, channel: Any) -> None:
        """A lease for a worker of the right kind that answers, by a stream where it has that."""
        try:
            lease = self._lease(worker.member, device, channel)
            try:
                await self._ask_black(worker, lease)
            except NoReply as error:
                if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                lease = replace(lease, stream=None)  # an agent from before there were streams
                await self._ask_black(worker, lease)
        except NoReply as error:
            worker.revoke(str(error))
        else:
            if self._serving.is_set():
                worker.grant(lease)
            else:
                lease.close()

    async def _ask_black(self, worker: WorkerLink, lease: Lease) -> None:
        """Ask for the answer to a black picture. Raises NoReply; then the lease is closed."""
        spec = lease.artifact.input
        black = PictureBytes(np.zeros(spec.shape_of(1), spec.dtype), spec)
        try:
            reply = await worker.ask_with(lease, black, self._patience_s)
            self._trial_s[worker.name] = reply.elapsed_us / 1e6
        except BaseException:
            lease.close()
            raise

    def _lease(self, member: Member, device: Message, channel: Any) -> Lease:
        """What is to be leased for a sub-model. Raises NoReply where the device has it not."""
        found = [m for m in device.models if m.digest == member.digest]
        ready = [m for m in found if m.state == READY and m.target in member.artifacts]
        if not ready:
            raise NoReply(
                f"{found[0].name} is {found[0].state} there {found[0].reason}".rstrip()
                if found
                else f"its agent has no model of the bundle {member.digest[:12]} loaded"
            )
        # The planned target first: others were not weighed when the plan was made.
        model = min(ready, key=lambda m: (m.target != self.site.target, m.name))
        method, metadata = methods(INFERENCE)["ModelInfer"], self.site.access.metadata()
        return Lease(
            device_id=device.device_id,
            generation=device.generation,
            model=model.name,
            head=request_head(model.name, member.digest[:12]),
            artifact=member.artifacts[model.target],
            infer=channel.unary_unary(
                method.path, response_deserializer=method.response.FromString
            ),
            stream=WorkerStream(channel, metadata, self._patience_s),
            metadata=metadata,
        )

    def _note(self, device: Message) -> None:
        """Say where another device, or an older state of it, answers at the address."""
        seen = device.device_id, device.generation
        if self._seen is not None and self._seen != seen:
            extra = {"device": self.site.name, "before": self._seen, "now": seen}
            if seen[0] != self._seen[0]:
                log.warning("another device answers at this address", extra=extra)
            elif seen[1] < self._seen[1]:
                log.warning("a device answers from an older state of its store", extra=extra)
            else:
                log.info("a device was started again", extra=extra)
        self._seen = seen

    def _lacks(self) -> list[WorkerLink]:
        return [worker for worker in self.workers.values() if worker.lease is None]

    def _heard(self) -> None:
        """The agent, and with it all of its workers, has just said something."""
        now = asyncio.get_running_loop().time()
        for worker in self.workers.values():
            worker.heard_s = now

    def _revoke_all(self, reason: str) -> None:
        for worker in self.workers.values():
            worker.revoke(reason)

    def _longest_silence_s(self) -> float:
        """Pictures on a slow link stand in the way of a heartbeat."""
        usual = [
            worker.times.percentile(0.95) or self._trial_s.get(worker.name, 0.0)
            for worker in self.workers.values()
        ]
        return min(max(SILENCE_S, 3 * max(usual), self._grown_s), self._patience_s)

    def _plainly(self, error: grpc.aio.AioRpcError, name: str, timeout_s: float) -> str:
        code = error.code() or grpc.StatusCode.UNKNOWN
        return str(fault_of(code, error.details(), self.site.access, name, timeout_s))


def _unheard() -> None:
    """A change, where nobody asked to be told."""


async def _within(work: Any, seconds: float | None) -> None:
    """Wait for something, but not longer than that."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return


_HEALTH = methods(HEALTH)["Check"].request
_DESCRIBE = methods(DEVICE)["Describe"].request

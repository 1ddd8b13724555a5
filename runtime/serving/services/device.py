"""edgevit.v1.DeviceService: tell about the device, take bundles, profile them, remove them."""

# ruff: noqa: N802 -- the calls have the protocol's names

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from runtime.cancel import Cancel, Cancelled
from runtime.errors import RuntimeFault
from runtime.serving.limits import Limits
from runtime.serving.models import Models
from runtime.serving.services.facts import describe_device
from runtime.serving.services.profiling import Profiling, Step, Wish
from runtime.serving.storage.files import told
from runtime.serving.storage.names import check_digest, default_name
from runtime.serving.storage.store import Store
from runtime.serving.storage.uploads import Upload
from runtime.wire.descriptors import DEVICE, Message, methods
from runtime.wire.refused import Refused, exhausted, invalid, precondition

UPLOADS = 4
IDLE_S = 60.0  # without a chunk; then the upload can be resumed, but holds nobody up


class DeviceService:
    """The calls of the service; give it to runtime.wire.service.handler."""

    def __init__(
        self,
        store: Store,
        models: Models,
        limits: Limits,
        name: str = "",
        *,
        served: Callable[[], int] = lambda: 0,
        uploaded: Callable[[str], None] = lambda status: None,
    ) -> None:
        """`name` is what the device's owner calls it.

        served() is how many inference requests were answered so far; uploaded is called with the
        gRPC status of each upload as it ends.
        """
        self._store, self._models, self._limits, self._name = store, models, limits, name
        self._uploaded, self._started = uploaded, time.monotonic()
        self._profiling = Profiling(name, served)
        self._uploads = 0
        store.in_use = self._in_use
        self._endings: set[asyncio.Future[None]] = set()

    async def Describe(self, request: Message, context: Any) -> Message:
        """The device as it is at this moment."""
        pids = [pid for model in self._models.loaded() for pid in model.worker_pids()]
        uptime_s = time.monotonic() - self._started
        response = await asyncio.to_thread(
            describe_device, self._store, self._limits, self._name, uptime_s, [os.getpid(), *pids]
        )
        for entry in self._models.index():
            response.models.add(
                name=entry.name, digest=entry.digest, target=entry.target,
                precision=entry.precision, state=entry.state, reason=entry.reason,
                threads=entry.threads, queued=entry.queued,
            )  # fmt: skip
        return response

    async def UploadStatus(self, request: Message, context: Any) -> Message:
        """What of a bundle is here."""
        response = methods(DEVICE)["UploadStatus"].response()
        digest = check_digest(request.digest)
        stored = self._store.whole(digest)
        if stored is not None:
            response.complete = True
            response.names.extend(stored.names)
            return response
        for path, size in sorted(self._store.held(digest).items()):
            response.held.add(path=path, bytes=size)
        return response

    async def UploadBundle(self, requests: AsyncIterator[Message], context: Any) -> Message:
        """Take a bundle; what came of a stream that breaks is kept for the next."""
        status = grpc.StatusCode.CANCELLED
        try:
            response = await self._upload(requests)
            status = grpc.StatusCode.OK
        except Exception as error:
            status = error.code if isinstance(error, Refused) else grpc.StatusCode.INTERNAL
            raise
        finally:
            self._uploaded(status.name)
        return response

    async def Profile(self, request: Message, context: Any) -> AsyncIterator[Message]:
        """Progress, then the run record."""
        answer = methods(DEVICE)["Profile"].response
        cancel = Cancel()
        context.add_done_callback(lambda _: cancel.cancel())  # also where the caller just goes
        stored = self._store.find(request.bundle)
        try:
            async for part in self._profiling.run(stored, _wish(request), cancel):
                if isinstance(part, Step):
                    yield answer(progress={"message": part.message, "fraction": part.fraction})
                else:
                    yield answer(run_json=part)
        except Cancelled as error:
            raise Refused(grpc.StatusCode.CANCELLED, str(error)) from error
        except Refused:
            raise
        except RuntimeFault as error:
            raise invalid(told(error, stored.path, f"the bundle '{request.bundle}'")) from error

    async def Remove(self, request: Message, context: Any) -> Message:
        """Remove a bundle or one of its names. FAILED_PRECONDITION while a model needs it."""
        self._check_unused(request.bundle)
        digest, freed = await asyncio.to_thread(self._store.remove, request.bundle)
        return methods(DEVICE)["Remove"].response(digest=digest, freed=freed)

    def _in_use(self, digest: str) -> bool:
        return bool(self._models.in_use(digest)) or digest == self._profiling.digest

    def _check_unused(self, name_or_digest: str) -> None:
        for digest, names in self._holdings(name_or_digest):
            alone = name_or_digest == digest or names == [name_or_digest]
            users = [
                model
                for model in self._models.in_use(digest)
                if alone or model.split("/")[0] == name_or_digest
            ]
            if users:
                raise precondition(f"'{name_or_digest}' is loaded as {', '.join(users)}; unload it")
            if alone and digest == self._profiling.digest:
                raise precondition(
                    f"the bundle '{name_or_digest}' is being profiled; try again when that is over"
                )

    def _holdings(self, name_or_digest: str) -> list[tuple[str, list[str]]]:
        """The bundle that a name or digest means, with its names; none where it means none."""
        found = [(stored.digest, stored.names) for stored in self._store.bundles()]
        return [(d, names) for d, names in found if name_or_digest in (d, *names)]

    async def _upload(self, requests: AsyncIterator[Message]) -> Message:
        first = await _next(requests)
        if first is None or not first.HasField("header"):
            raise invalid("expected a header as the first message of an upload")
        async with self._begun(first.header) as upload:
            while not upload.complete and (request := await _next(requests)) is not None:
                if not request.HasField("chunk"):
                    raise invalid("expected chunks after the header of an upload")
                chunk = request.chunk
                await asyncio.to_thread(
                    upload.write, chunk.file, chunk.offset, chunk.data, chunk.sha256
                )
            stored = await asyncio.to_thread(upload.finish)
            return methods(DEVICE)["UploadBundle"].response(
                name=first.header.name or default_name(stored.bundle.manifest.model.ref),
                digest=stored.digest,
                received=upload.received,
                was_complete=upload.complete,
            )

    @asynccontextmanager
    async def _begun(self, header: Message) -> AsyncIterator[Upload]:
        """An upload that is suspended at the end, however its call ends.

        The threads cannot be cancelled with the call, so the end waits for the one that runs.
        """
        if self._uploads >= UPLOADS:
            raise exhausted(f"{UPLOADS} uploads run at this moment; try again when one is over")
        self._uploads += 1
        beginning = asyncio.ensure_future(asyncio.to_thread(self._store.begin, header))
        try:
            yield await asyncio.shield(beginning)
        finally:
            self._uploads -= 1
            # A cancellation that comes only now must not leave the bundle in this call's hands.
            ending = asyncio.ensure_future(_ended(beginning))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)


async def _ended(beginning: asyncio.Future[Upload]) -> None:
    """Suspend an upload when it has begun."""
    await asyncio.wait([beginning])
    if not beginning.exception():
        await asyncio.to_thread(beginning.result().suspend)


async def _next(requests: AsyncIterator[Message]) -> Message | None:
    """The next message of a client's stream, None at its end."""
    try:
        async with asyncio.timeout(IDLE_S):
            return await anext(requests, None)
    except TimeoutError:
        raise Refused(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"no part of the upload came for {IDLE_S:g} s; begin again, it goes on from there",
        ) from None


def _wish(request: Message) -> Wish:
    """The settings of a ProfileRequest; 0 is not said."""
    said = {
        name: getattr(request, name)
        for name in ("threads", "runs", "per_op", "min_time_s", "max_time_s")
        if getattr(request, name)
    }
    return Wish(targets=tuple(request.targets), **said)

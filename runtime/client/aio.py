"""AsyncAgentClient: the client of runtime/client/sync.py for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from runtime.client import calls
from runtime.client.calls import (
    INFER_S,
    LOAD_S,
    LONG_S,
    QUICK_S,
    ProfileOptions,
    Progress,
)
from runtime.client.channel import Access
from runtime.client.connection import Connection, whole
from runtime.client.errors import AgentFault
from runtime.client.results import (
    Device,
    Held,
    InferResult,
    ModelMetadata,
    ModelState,
    ServerMetadata,
)
from runtime.client.steps import Ask, Plan, Step, Wait, Work
from runtime.run_record import RunRecord
from runtime.sessions.base import Array
from runtime.wire.bundle_plan import Sent

T = TypeVar("T")


class AsyncAgentClient:
    """One agent, asked over a connection that stays open; `close` it or use it in `async with`.

    It belongs to the event loop in which it was made.
    """

    def __init__(self, access: Access | str) -> None:
        self._connection = Connection(access, grpc.aio)
        self._sender: Connection | None = None

    @property
    def access(self) -> Access:
        """Whom this client talks to."""
        return self._connection.access

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way end as cancelled."""
        self._connection.closed = True
        if self._sender is not None:
            self._sender.channel.close()
        await self._connection.channel.close()

    async def live(self, *, timeout_s: float = QUICK_S) -> bool:
        """Whether the agent runs. Raises AgentFault where it cannot be reached."""
        return await self._run(calls.live(timeout_s))

    async def ready(self, *, timeout_s: float = QUICK_S) -> bool:
        """Whether the agent takes requests: not while it starts or ends."""
        return await self._run(calls.ready(timeout_s))

    async def metadata(self, *, timeout_s: float = QUICK_S) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return await self._run(calls.metadata(timeout_s))

    async def health(self, service: str = "", *, timeout_s: float = QUICK_S) -> str:
        """SERVING or NOT_SERVING, of the agent, a service or a model. NOT_FOUND for another."""
        return await self._run(calls.health(service, timeout_s))

    async def model_ready(
        self, model: str, version: str = "", *, timeout_s: float = QUICK_S
    ) -> bool:
        """Whether a model takes requests."""
        return await self._run(calls.model_ready(model, version, timeout_s))

    async def model_metadata(
        self, model: str, version: str = "", *, timeout_s: float = QUICK_S
    ) -> ModelMetadata:
        """Inputs, outputs and properties of a loaded model."""
        return await self._run(calls.model_metadata(model, version, timeout_s))

    async def infer(
        self,
        model: str,
        x: Array | Mapping[str, Array] | None = None,
        *,
        input_ref: str | None = None,
        version: str = "",
        timeout_s: float = INFER_S,
    ) -> InferResult:
        """Run a model on its input, on its inputs by name, or on what the device senses itself.

        The arrays have the shape, batch included, and dtype that model_metadata says. For an array
        without a name the first call asks for that metadata. input_ref takes the place of x: the
        name of an input there (docs/agent.md).
        """
        names = self._connection.input_names
        return await self._run(calls.infer(model, x, version, timeout_s, names, input_ref))

    async def index(
        self, *, ready_only: bool = False, timeout_s: float = QUICK_S
    ) -> list[ModelState]:
        """Every bundle of the store and every loaded model, with its state."""
        return await self._run(calls.index(ready_only, timeout_s))

    async def load(
        self,
        model: str,
        *,
        threads: int | None = None,
        instances: int | None = None,
        timeout_s: float = LOAD_S,
    ) -> None:
        """Load NAME or NAME/TARGET, with `threads` for each instance; ready when it returns."""
        await self._run(calls.load(model, threads, instances, timeout_s))

    async def unload(self, model: str, *, timeout_s: float = LOAD_S) -> None:
        """Take a model out of memory; its bundle stays."""
        await self._run(calls.unload(model, timeout_s))

    async def describe(self, *, timeout_s: float = QUICK_S) -> Device:
        """The device: hardware, engines, memory, disk, temperature, clock, models and bundles."""
        return await self._run(calls.describe(timeout_s))

    async def upload_status(self, digest: str, *, timeout_s: float = QUICK_S) -> Held:
        """What the agent has of the bundle with this digest."""
        return await self._run(calls.upload_status(digest, timeout_s))

    async def upload(
        self,
        path: Path,
        name: str | None = None,
        progress: Sent | None = None,
        *,
        timeout_s: float = LONG_S,
    ) -> str:
        """Bring a bundle over and give its digest; only what is not there travels.

        Without a name the agent calls it after its model. A cut connection is taken up again where
        it ended. progress gets the bytes that are there and those of the bundle, in another thread.
        """
        return await self._run(calls.upload(Path(path), name, progress, timeout_s))

    async def profile(
        self,
        bundle: str,
        targets: Sequence[str] = (),
        *,
        threads: int = 1,
        runs: int = 100,
        per_op: bool = False,
        min_time_s: float = 1.0,
        max_time_s: float = 120.0,
        progress: Progress | None = None,
        timeout_s: float = LONG_S,
    ) -> RunRecord:
        """Profile a stored bundle (name or digest) on the device: runtime.profiler.profile there.

        No targets are all of them. progress is told a message and the fraction done.
        """
        wanted = ProfileOptions(threads, runs, per_op, min_time_s, max_time_s)
        return await self._run(calls.profile(bundle, targets, wanted, progress, timeout_s))

    async def remove(self, bundle: str, *, timeout_s: float = QUICK_S) -> int:
        """Take a bundle (name or digest) from the store; the bytes that it freed."""
        return await self._run(calls.remove(bundle, timeout_s))

    async def _run(self, plan: Plan[T]) -> T:
        """Do the steps of a call."""
        try:
            step = next(plan)
            while True:
                try:
                    answer = await self._do(step)
                except AgentFault as fault:
                    step = plan.throw(fault)
                else:
                    step = plan.send(answer)
        except StopIteration as ended:
            value: T = ended.value
            return value

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Work):
            return await asyncio.to_thread(step.do)
        try:
            if step.method.client_streaming:
                return await self._send(step)
            begin, options = self._connection.callable_of(step), self._connection.options(step)
            if not step.method.server_streaming:
                return await begin(step.request, **options)
            return await _last(begin(step.request, **options), step)
        except grpc.RpcError as error:
            raise self._connection.fault(error, step) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._connection.cancelled(step) from error  # `close`, not who waits for it

    async def _send(self, step: Ask) -> Any:
        """A stream of ours goes over a blocking channel, in a thread.

        It reads files, and grpc.aio loses the status of a call that ends while a message goes out.
        """
        if self._connection.closed:
            raise self._connection.gone()
        if self._sender is None:
            self._sender = Connection(self.access, grpc)
        begin, options = self._sender.callable_of(step), self._sender.options(step)
        call = begin.future(step.request, **options)
        try:
            return await asyncio.to_thread(whole, call)
        finally:
            call.cancel()


async def _last(call: Any, step: Ask) -> Any:
    """The last message of a stream; it ends with us."""
    last = None
    try:
        async for last in call:
            if step.each is not None:
                step.each(last)
    finally:
        call.cancel()
    return last

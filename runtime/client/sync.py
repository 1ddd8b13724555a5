"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

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


class AgentClient:
    """One agent, asked over a connection that stays open; `close` it or use it in a `with`."""

    def __init__(self, access: Access | str) -> None:
        self._connection = Connection(access, grpc)

    @property
    def access(self) -> Access:
        """Whom this client talks to."""
        return self._connection.access

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that are under way end as cancelled."""
        self._connection.closed = True
        self._connection.channel.close()

    def live(self, *, timeout_s: float = QUICK_S) -> bool:
        """Whether the agent runs. Raises AgentFault where it cannot be reached."""
        return self._run(calls.live(timeout_s))

    def ready(self, *, timeout_s: float = QUICK_S) -> bool:
        """Whether the agent takes requests: not while it starts or ends."""
        return self._run(calls.ready(timeout_s))

    def metadata(self, *, timeout_s: float = QUICK_S) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return self._run(calls.metadata(timeout_s))

    def health(self, service: str = "", *, timeout_s: float = QUICK_S) -> str:
        """SERVING or NOT_SERVING, of the agent, a service or a model. NOT_FOUND for another."""
        return self._run(calls.health(service, timeout_s))

    def model_ready(self, model: str, version: str = "", *, timeout_s: float = QUICK_S) -> bool:
        """Whether a model takes requests."""
        return self._run(calls.model_ready(model, version, timeout_s))

    def model_metadata(
        self, model: str, version: str = "", *, timeout_s: float = QUICK_S
    ) -> ModelMetadata:
        """Inputs, outputs and properties of a loaded model."""
        return self._run(calls.model_metadata(model, version, timeout_s))

    def infer(
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
        return self._run(calls.infer(model, x, version, timeout_s, names, input_ref))

    def index(self, *, ready_only: bool = False, timeout_s: float = QUICK_S) -> list[ModelState]:
        """Every bundle of the store and every loaded model, with its state."""
        return self._run(calls.index(ready_only, timeout_s))

    def load(
        self,
        model: str,
        *,
        threads: int | None = None,
        instances: int | None = None,
        timeout_s: float = LOAD_S,
    ) -> None:
        """Load NAME or NAME/TARGET, with `threads` for each instance; ready when it returns."""
        self._run(calls.load(model, threads, instances, timeout_s))

    def unload(self, model: str, *, timeout_s: float = LOAD_S) -> None:
        """Take a model out of memory; its bundle stays."""
        self._run(calls.unload(model, timeout_s))

    def describe(self, *, timeout_s: float = QUICK_S) -> Device:
        """The device: hardware, engines, memory, disk, temperature, clock, models and bundles."""
        return self._run(calls.describe(timeout_s))

    def upload_status(self, digest: str, *, timeout_s: float = QUICK_S) -> Held:
        """What the agent has of the bundle with this digest."""
        return self._run(calls.upload_status(digest, timeout_s))

    def upload(
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
        return self._run(calls.upload(Path(path), name, progress, timeout_s))

    def profile(
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
        return self._run(calls.profile(bundle, targets, wanted, progress, timeout_s))

    def remove(self, bundle: str, *, timeout_s: float = QUICK_S) -> int:
        """Take a bundle (name or digest) from the store; the bytes that it freed."""
        return self._run(calls.remove(bundle, timeout_s))

    def _run(self, plan: Plan[T]) -> T:
        """Do the steps of a call."""
        try:
            step = next(plan)
            while True:
                try:
                    answer = self._do(step)
                except AgentFault as fault:
                    step = plan.throw(fault)
                else:
                    step = plan.send(answer)
        except StopIteration as ended:
            value: T = ended.value
            return value

    def _do(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return time.sleep(step.seconds)
        if isinstance(step, Work):
            return step.do()
        begin, options = self._connection.callable_of(step), self._connection.options(step)
        try:
            if step.method.client_streaming:
                return whole(begin.future(step.request, **options))
            if not step.method.server_streaming:
                return begin(step.request, **options)
            return _last(begin(step.request, **options), step)
        except grpc.RpcError as error:
            raise self._connection.fault(error, step) from error
        except ValueError as error:  # closed by another thread before gRPC had the call
            if not self._connection.closed:
                raise
            raise self._connection.gone() from error


def _last(call: Any, step: Ask) -> Any:
    """The last message of a stream; it ends with us."""
    last = None
    try:
        for last in call:
            if step.each is not None:
                step.each(last)
    finally:
        call.cancel()
    return last

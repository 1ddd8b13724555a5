"""One model that is served: its queue, its engines, and their restart when they die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Any

import grpc

from runtime.bundle import Bundle
from runtime.errors import RuntimeFault
from runtime.manifest import TensorSpec
from runtime.serving.batching import BatchQueue, Waiting
from runtime.serving.breaker import Breaker
from runtime.serving.engines.base import Engine, EngineOptions, Loaded, Ran
from runtime.serving.engines.form import Form
from runtime.serving.engines.process import EngineProcess
from runtime.serving.engines.thread import EngineThread
from runtime.serving.observer import NOBODY, Observer
from runtime.serving.observer import Timings as Timings  # noqa: PLC0414 -- part of an Answer
from runtime.serving.properties import properties
from runtime.sessions.base import Array, check_input, engine_for
from runtime.wire.refused import Refused, invalid, unavailable

LOADING, READY, UNLOADING, UNAVAILABLE = "LOADING", "READY", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True)
class ModelSettings:
    """How a model is served. `queue` counts waiting requests, max_batch rows of one run."""

    threads: int = 1
    instances: int = 1
    queue: int = 64
    isolate: bool = True
    batch_wait_ms: float = 2.0
    max_batch: int = 16
    load_timeout_s: float = 120.0
    run_timeout_s: float = 60.0


@dataclass(frozen=True)
class Answer:
    """The outputs of a request, in the order of the model's, and where its time went."""

    outputs: list[Array]
    timings: Timings


class ServedModel:
    """One artefact of a bundle under a name. Of one event loop; start() before anything else."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        digest: str,
        target: str,
        settings: ModelSettings,
        observe: Observer = NOBODY,
        changed: Callable[[ServedModel], None] = lambda model: None,
    ) -> None:
        """Nothing is loaded yet. `changed` is called after every change of `state`.

        Raises RuntimeFault where the bundle has no such target, or its labels cannot be read.
        """
        artifact = bundle.artifact(target)
        self._path = bundle.artifact_path(target)
        self.name, self.digest, self.version = name, digest, digest[:12]
        self.target, self.precision, self.settings = target, artifact.precision, settings
        self.engine, self.engine_version = engine_for(self._path).name, ""
        self.platform = f"edgevit_{self.engine}"
        self.inputs: list[TensorSpec] = [artifact.input]
        self.outputs: list[TensorSpec] = [artifact.output]
        self.properties = properties(bundle, digest, target)
        self.state, self.reason = LOADING, ""
        self._observe, self._changed = observe, changed
        self._form: Form | None = None
        self._queue = BatchQueue(settings.queue)
        self._engines: list[Engine] = []
        self._idle: list[Engine] = []
        self._starting: list[Engine] = []
        self._running = 0
        self._quiet = asyncio.Event()
        self._breaker = Breaker()
        self._restarts: set[asyncio.Task[None]] = set()
        self._burials: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Requests that wait for an engine."""
        return len(self._queue)

    def worker_pids(self) -> list[int]:
        """The engine processes; none where engines run in threads."""
        return [engine.pid for engine in list(self._engines) if engine.pid is not None]

    async def start(self) -> None:
        """Load all engines. Raises Refused where one does not load; then none is left."""
        engines = self._starting = [self._new_engine() for _ in range(self.settings.instances)]
        try:
            starts = [asyncio.ensure_future(engine.start()) for engine in engines]
            try:
                loaded = await asyncio.gather(*starts)
            finally:
                for start in starts:
                    start.cancel()
                await asyncio.wait(starts)
            if self.state in (UNLOADING, UNAVAILABLE):
                raise unavailable(f"the model '{self.name}' was ended while it was loaded")
        except BaseException as error:
            if self.state in (LOADING, READY):  # READY where one died and was started again
                self._set(UNAVAILABLE, str(error))
            await self._end()
            raise
        finally:
            self._starting = []
        for engine, facts in zip(engines, loaded, strict=True):
            if engine.alive:  # one that has died meanwhile is being started again
                self._take_up(engine, facts)

    async def infer(self, inputs: list[Array], *, timeout_s: float | None = None) -> Answer:
        """Wait for an engine and run, perhaps together with other requests.

        inputs are as `inputs` says, where -1 takes any number of rows up to the most of one run;
        the arrays must not change meanwhile. A request that waits longer than timeout_s is not run.
        Raises Refused: INVALID_ARGUMENT, RESOURCE_EXHAUSTED where the queue is full, UNAVAILABLE
        where the engine died or the model is not ready, DEADLINE_EXCEEDED, INTERNAL.
        """
        form, x = self._form, self._checked(inputs)
        if form is None or self.state in (UNLOADING, UNAVAILABLE):
            raise unavailable(self._why_not())
        request = Waiting(
            x,
            form.rows_of(x) if form.joins else 1,
            asyncio.get_running_loop().create_future(),
            None if timeout_s is None else monotonic_ns() + int(timeout_s * 1e9),
        )
        self._queue.put(request)
        self._pump()
        try:
            answer: Answer = await request.answer
        except asyncio.CancelledError:
            self._queue.leave(request)
            self._pump()
            raise
        return answer

    async def drain(self) -> None:
        """Refuse new requests and wait until the ones that are here are answered."""
        if self.state != UNAVAILABLE:
            self._set(UNLOADING)
        while self._running or len(self._queue):
            self._quiet.clear()
            await self._quiet.wait()

    async def close(self) -> None:
        """End the engines; requests still here are refused with UNAVAILABLE."""
        self._set(UNAVAILABLE, "it was unloaded")
        self._refuse_all(f"the model '{self.name}' was unloaded")
        if self._timer is not None:
            self._timer.cancel()
        await self._end()

    async def _end(self) -> None:
        """End every engine, those that are being started again too."""
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*self._restarts, *self._burials, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in [*self._engines, *self._starting]))
        self._engines, self._idle = [], []

    def _checked(self, inputs: list[Array]) -> Array:
        if len(inputs) != 1:
            raise invalid(f"expected one input, '{self.inputs[0].name}', got {len(inputs)}")
        try:
            check_input(inputs[0], self.inputs[0])
        except RuntimeFault as fault:
            raise invalid(str(fault)) from None
        form = self._form
        if form is not None and form.most is not None and form.rows_of(inputs[0]) > form.most:
            raise invalid(
                f"input '{self.inputs[0].name}': expected at most {form.most} rows in a request, "
                f"got {form.rows_of(inputs[0])}; send them in parts"
            )
        return inputs[0]

    def _new_engine(self) -> Engine:
        s = self.settings
        options = EngineOptions(
            self._path, s.threads, s.max_batch, s.load_timeout_s, s.run_timeout_s
        )
        return (EngineProcess if s.isolate else EngineThread)(options, self._engine_ended)

    def _take_up(self, engine: Engine, loaded: Loaded) -> None:
        """Give a loaded engine work."""
        if self._form is None:
            form = self._form = loaded.form
            self.engine, self.engine_version = loaded.engine, loaded.engine_version
            self.inputs, self.outputs = ([spec] for spec in form.served())
            if form.joins and form.most is not None:
                self._queue.most, self._queue.wait_ms = form.most, self.settings.batch_wait_ms
        self._engines.append(engine)
        self._idle.append(engine)
        if self.state == LOADING:
            self._set(READY)
        self._pump()

    def _pump(self) -> None:
        """Start what can be started now."""
        self._idle = [engine for engine in self._idle if engine.alive]  # its end is not told yet
        while self._idle and (batch := self._queue.take()):
            alive = [request for request in batch if not request.expired()]
            late = "the request waited longer than its deadline and was not run"
            _refuse([r for r in batch if r not in alive], grpc.StatusCode.DEADLINE_EXCEEDED, late)
            if alive:
                self._run(self._idle.pop(), alive)
        if self._idle and len(self._queue) and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._queue.ready_in_s(), self._timer_rang)
        if not self._running and not len(self._queue):
            self._quiet.set()

    def _timer_rang(self) -> None:
        self._timer = None
        self._pump()

    def _run(self, engine: Engine, batch: list[Waiting]) -> None:
        begun = monotonic_ns()
        self._running += 1
        self._observe.batch(self.name, len(batch))
        ran = engine.run([request.x for request in batch])
        ran.add_done_callback(partial(self._ran, engine, batch, begun))

    def _ran(
        self, engine: Engine, batch: list[Waiting], begun: int, future: asyncio.Future[Ran]
    ) -> None:
        self._running -= 1
        error = future.exception()
        if error is None:
            self._breaker.ran()
            _answer(batch, begun, future.result())
        else:
            code = error.code if isinstance(error, Refused) else grpc.StatusCode.INTERNAL
            if code == grpc.StatusCode.INTERNAL:
                self._breaker.ran()  # it lives and said what it cannot do
            if len(batch) == 1 or code != grpc.StatusCode.INTERNAL:
                _refuse(batch, code, str(error))
            elif self.state == UNAVAILABLE:  # no engine is left to run them one by one
                _refuse(batch, grpc.StatusCode.UNAVAILABLE, self._why_not())
            else:
                # One of them may be what the engine cannot run: the others are not to suffer.
                for request in batch:
                    request.alone = True
                self._queue.put_back([r for r in batch if not r.answer.done()])
        if engine in self._engines:
            self._idle.append(engine)
        self._pump()

    def _engine_ended(self, engine: Engine, how: str) -> None:
        """An engine died, running or idle."""
        self._engines = [e for e in self._engines if e is not engine]
        self._idle = [e for e in self._idle if e is not engine]
        _keep(self._burials, engine.close())
        self._died(how)

    def _died(self, how: str) -> None:
        """Count a death; start another engine unless there were too many."""
        if self.state == UNAVAILABLE or (self.state == UNLOADING and not len(self._queue)):
            return
        if too_often := self._breaker.count():
            reason = (
                f"its engine ended {too_often} and is not started again; the last time: {how}; "
                "load the model again to try once more"
            )
            self._set(UNAVAILABLE, reason)
            self._refuse_all(self._why_not())
            for engine in self._engines:
                _keep(self._burials, engine.close())
            self._engines, self._idle = [], []
            return
        self._observe.restart(self.name, how)
        if not self._engines and self.state == READY:
            self._set(LOADING, f"{how}; it is being started again")
        _keep(self._restarts, self._restart())

    async def _restart(self) -> None:
        await asyncio.sleep(self._breaker.pause_s())
        if self.state == UNAVAILABLE:  # by the deaths of others meanwhile
            return
        engine = self._new_engine()
        try:
            loaded = await engine.start()
        except Refused as error:
            self._died(str(error))
            return
        if self.state == UNAVAILABLE:
            _keep(self._burials, engine.close())
        else:
            self._take_up(engine, loaded)

    def _refuse_all(self, why: str) -> None:
        _refuse(self._queue.clear(), grpc.StatusCode.UNAVAILABLE, why)
        if not self._running:
            self._quiet.set()

    def _why_not(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"the model '{self.name}' is {self.state.lower()}{why}"

    def _set(self, state: str, reason: str = "") -> None:
        if (self.state, self.reason) != (state, reason):
            self.state, self.reason = state, reason
            self._changed(self)


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run `work` as one of `tasks`, until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _answer(batch: list[Waiting], begun: int, ran: Ran) -> None:
    for request, y in zip(batch, ran.outputs, strict=True):
        if not request.answer.done():  # else its caller has gone
            queue_us = (begun - request.since_ns) // 1000
            timings = Timings(queue_us, ran.decode_us, ran.compute_us, ran.encode_us, len(batch))
            request.answer.set_result(Answer([y], timings))


def _refuse(batch: list[Waiting], code: grpc.StatusCode, why: str) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(Refused(code, why))

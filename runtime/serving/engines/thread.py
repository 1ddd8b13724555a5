"""An engine in a thread of the agent: it takes less memory, but a crash of it ends the agent."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Any

import grpc

from runtime.errors import RuntimeFault
from runtime.serving.engines.base import Ended, EngineOptions, Loaded, Ran
from runtime.serving.engines.form import Form, check_answer
from runtime.serving.engines.worker import open_warm
from runtime.sessions.base import Array, Session
from runtime.wire.refused import Refused, precondition, unavailable

PATIENCE_S = 3.0

Job = tuple[Sequence[Array], "asyncio.Future[Ran]"]


class EngineThread:
    """An engine in a daemon thread. A hung one cannot be killed: it is left behind."""

    pid: int | None = None

    def __init__(self, options: EngineOptions, ended: Ended) -> None:
        """Nothing is started yet; `ended` is called where a run hangs."""
        self._options, self._ended = options, ended
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loading: asyncio.Future[Loaded] = self._loop.create_future()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._ran: asyncio.Future[Ran] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._alive = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """See Engine.alive."""
        return self._alive

    async def start(self) -> Loaded:
        """Open the artefact in the thread and run it once. Raises Refused, see Engine.start."""
        limit = self._options.load_timeout_s
        try:
            if not self._loading.done():
                self._thread.start()
            loaded = await asyncio.wait_for(self._loading, limit)
            self._alive = True
            return loaded
        except TimeoutError:
            self._jobs.put(None)
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{self._options.path.name} did not load within {limit:g} s",
            ) from None
        except BaseException:
            self._jobs.put(None)
            raise

    def run(self, parts: Sequence[Array]) -> asyncio.Future[Ran]:
        """See Engine.run. decode_us and encode_us are the joining and splitting."""
        self._ran = self._loop.create_future()
        self._timer = self._loop.call_later(self._options.run_timeout_s, self._hung)
        self._jobs.put((parts, self._ran))
        return self._ran

    async def close(self) -> None:
        """Let the thread end after its run or load, and wait for it a while."""
        self._alive = False
        self._jobs.put(None)
        if self._timer is not None:
            self._timer.cancel()
        for waiting in (self._loading, self._ran):
            if waiting is not None and not waiting.done():
                waiting.set_exception(
                    unavailable(f"the engine of {self._options.path.name} is being ended")
                )
                waiting.exception()  # whoever waits gets it; nobody has to
        if self._thread.is_alive():
            await asyncio.wait([self._stopped], timeout=PATIENCE_S)

    def _hung(self) -> None:
        limit = self._options.run_timeout_s
        late = f"{self._options.path.name} did not answer within {limit:g} s; its thread is left"
        self._alive = False
        self._jobs.put(None)
        if self._ran is not None and not self._ran.done():
            self._ran.set_exception(Refused(grpc.StatusCode.DEADLINE_EXCEEDED, late))
        self._ended(self, late)

    def _work(self) -> None:
        """The thread: load, then run jobs until None comes."""
        session = None
        try:
            session, form = open_warm(
                self._options.path.resolve(), self._options.threads, self._options.max_batch
            )
            loaded = Loaded(session.engine, session.engine_version, form)
            self._tell(_resolve, self._loading, loaded, None)
            while (job := self._jobs.get()) is not None:
                ran, error = _run(session, form, job[0])
                self._tell(self._answer, job[1], ran, error)
        except Exception as error:  # whatever an engine raises while it loads
            fault = isinstance(error, RuntimeFault)
            text = str(error) if fault else f"{type(error).__name__}: {error}"
            self._tell(_resolve, self._loading, None, precondition(text))
        finally:
            if session is not None:
                session.close()
            self._tell(_resolve, self._stopped, None, None)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _answer(self, future: asyncio.Future[Ran], ran: Ran | None, error: Refused | None) -> None:
        if future is self._ran and self._timer is not None:
            self._timer.cancel()
        _resolve(future, ran, error)


def _resolve(future: asyncio.Future[Any], result: object, error: Refused | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _run(session: Session, form: Form, parts: Sequence[Array]) -> tuple[Ran | None, Refused | None]:
    start = perf_counter_ns()
    try:
        x = form.joined(parts)
        joined = perf_counter_ns()
        y = session.run(x)
        ran = perf_counter_ns()
        wrong = check_answer(y, form.output, form.rows_run(parts))
        if wrong is not None:
            return None, Refused(grpc.StatusCode.INTERNAL, wrong)
        outputs = form.split(y, parts)
    except Exception as error:  # whatever an engine raises is this run's answer
        return None, Refused(grpc.StatusCode.INTERNAL, str(error) or type(error).__name__)
    split = perf_counter_ns()
    times = [(joined - start) // 1000, (ran - joined) // 1000, (split - ran) // 1000]
    return Ran(outputs, *times), None

"""One engine process seen from the agent.

A request is copied into memory that both processes map, four bytes on a socket wake the engine, its
answer wakes the event loop, and the output is copied out: no thread and no pickle on the way.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from time import monotonic, perf_counter_ns
from typing import Any

import grpc

from runtime.interpreter import command, environment, how_it_ended, last_words
from runtime.serving.engines.base import Ended, EngineOptions, Loaded, Ran
from runtime.serving.engines.form import Form, Slot
from runtime.serving.engines.messages import DONE, HEADER, READY, RUN
from runtime.sessions.base import Array
from runtime.tensor_spec import TensorSpec
from runtime.wire.refused import Refused, precondition, unavailable

PATIENCE_S = 3.0
RECEIVE = 65536
# The terminal sends SIGINT and SIGHUP, a service manager SIGTERM, to every process of the agent.
# The agent drains first and ends its engines itself.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EngineProcess:
    """An engine in a process of its own, which a crash of it ends and nothing else."""

    def __init__(self, options: EngineOptions, ended: Ended) -> None:
        """Nothing is started yet; `ended` is called once when a started process dies by itself."""
        self.pid: int | None = None
        self._options, self._ended = options, ended
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()
        self._loading: asyncio.Future[Loaded] = self._loop.create_future()
        self._ran: asyncio.Future[Ran] | None = None
        self._burial: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._too_late = ""
        self._started = self._closing = False

    @property
    def alive(self) -> bool:
        """See Engine.alive."""
        return self._started and self._burial is None

    async def start(self) -> Loaded:
        """Start the process and wait until the artefact is loaded and ran once.

        Raises Refused: FAILED_PRECONDITION where it does not load, UNAVAILABLE where the process
        died or cannot be started, DEADLINE_EXCEEDED where it took too long.
        """
        if self._closing:
            raise unavailable(f"the engine of {self._options.path.name} is being ended")
        try:
            self._spawn()
            limit = self._options.load_timeout_s
            late = (
                f"{self._options.path.name} did not load within {limit:g} s; its engine was ended"
            )
            self._timer = self._loop.call_later(limit, self._end_late, late)
            loaded = await self._loading
        except BaseException as error:
            self._loading.cancel()
            await self.close()
            if isinstance(error, OSError):
                raise unavailable(f"cannot start an engine process: {error.strerror}") from error
            raise
        self._timer.cancel()
        self._started = True
        return loaded

    def run(self, parts: Sequence[Array]) -> asyncio.Future[Ran]:
        """See Engine.run. decode_us and encode_us are the copies in and out."""
        start = perf_counter_ns()
        form = self._form
        rows = form.rows_run(parts)
        x, self._y = self._slot.views(rows)
        form.fill(x, parts)
        self._parts = parts
        self._copied_us = (perf_counter_ns() - start) // 1000
        self._ran = self._loop.create_future()
        limit = self._options.run_timeout_s
        late = f"{self._options.path.name} did not answer within {limit:g} s; its engine was ended"
        self._timer = self._loop.call_later(limit, self._end_late, late)
        with suppress(OSError):  # a dead process is noticed by the end of the socket
            self._socket.send(RUN.pack(rows))
        return self._ran

    async def close(self) -> None:
        """End the process by the end of its socket, and by force if it does not follow."""
        self._closing = True
        if self._process is None:
            return
        self._hang_up()
        assert self._burial is not None
        await asyncio.shield(self._burial)

    def _spawn(self) -> None:
        """Start the process; an OSError leaves nothing open."""
        with ExitStack() as made:
            # A file, not a pipe: nobody reads it while the process runs, and it must never block.
            self._stderr = made.enter_context(tempfile.TemporaryFile())
            self._fd = _memory()
            made.callback(os.close, self._fd)
            ours, theirs = socket.socketpair()
            self._socket = made.enter_context(ours)
            arguments: dict[str, Any] = {
                "path": str(self._options.path.resolve()),
                "threads": self._options.threads,
                "max_batch": self._options.max_batch,
                "socket": theirs.fileno(),
                "memory": self._fd,
            }
            work = json.dumps(arguments)
            with theirs:
                self._process = subprocess.Popen(
                    command("runtime.serving.engines.worker", work, ignored=IGNORED),
                    stdin=subprocess.DEVNULL,
                    stdout=self._stderr,
                    stderr=self._stderr,
                    env=environment(self._options.threads),
                    pass_fds=(theirs.fileno(), self._fd),
                )
            made.pop_all()  # the burial of the process closes them
        self.pid = self._process.pid
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        self._received += data
        while len(self._received) >= HEADER.size:
            kind, length, spent_ns = HEADER.unpack_from(self._received)
            end = HEADER.size + length
            if len(self._received) < end:
                return
            text = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            if kind == DONE:
                self._answer(spent_ns)
            elif kind == READY:
                self._map(json.loads(text))
            else:
                self._fail(text.decode("utf-8", "replace"))

    def _map(self, ready: dict[str, Any]) -> None:
        """Map the memory that the engine process has made as large as its artefact needs."""
        form = Form.of(
            TensorSpec(**ready["input"]), TensorSpec(**ready["output"]), self._options.max_batch
        )
        self._form = form
        self._slot = Slot(form, memoryview(mmap.mmap(self._fd, form.size())))
        if not self._loading.done():
            self._loading.set_result(Loaded(ready["engine"], ready["engine_version"], form))

    def _answer(self, spent_ns: int) -> None:
        ran, self._ran = self._ran, None
        if self._timer is not None:
            self._timer.cancel()
        if ran is None or ran.done():
            return
        start = perf_counter_ns()
        outputs = self._form.split(self._y, self._parts)
        self._parts = ()
        copied_us = (perf_counter_ns() - start) // 1000
        ran.set_result(Ran(outputs, self._copied_us, spent_ns // 1000, copied_us))

    def _fail(self, text: str) -> None:
        """The engine could not do what it was told."""
        ran, self._ran = self._ran, None
        if self._timer is not None:
            self._timer.cancel()
        if not self._loading.done():
            self._loading.set_exception(precondition(text))
        elif ran is not None and not ran.done():
            ran.set_exception(Refused(grpc.StatusCode.INTERNAL, text))

    def _end_late(self, late: str) -> None:
        self._too_late = late
        if self._process is not None:
            self._process.kill()
            # Not by the end of its socket alone: one that waits for the disk outlives a kill.
            self._hang_up()

    def _hang_up(self) -> None:
        """No more of this process: close the socket, which ends it, and see to its end."""
        if self._burial is None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        process = self._process
        assert process is not None
        try:
            await _wait(process)
        finally:
            process.kill()  # nothing where it has ended; the loop may be closing while it has not
            await _wait(process)
            code = process.returncode
            how = (
                f"the engine process of {self._options.path.name} ended with "
                f"{'no exit code yet' if code is None else how_it_ended(code)}"
                f"{last_words(self._stderr)}"
            )
            self._stderr.close()
            os.close(self._fd)
            if self._timer is not None:
                self._timer.cancel()
            self._refuse(how)
        if self._started and not self._closing:
            self._ended(self, self._too_late or how)

    def _refuse(self, how: str) -> None:
        """Answer whoever waits for this process."""
        error = unavailable(how)
        if self._too_late:
            error = Refused(grpc.StatusCode.DEADLINE_EXCEEDED, self._too_late)
        elif self._closing:
            error = unavailable(f"the engine of {self._options.path.name} is being ended")
        for waiting in (self._loading, self._ran):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
        self._ran = None


def _memory() -> int:
    """A descriptor of memory that has no name, still empty."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # Android forbids it to some
            return os.memfd_create("edgevit-engine", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process, a while. Not in a thread: those may all be busy with files."""
    end, pause_s = monotonic() + PATIENCE_S, 0.001
    while process.poll() is None and monotonic() < end:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)

"""How a server ends: by a signal, with a time of grace for the calls that run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

log = logging.getLogger(__name__)

ENDINGS = ("SIGTERM", "SIGINT", "SIGHUP")
LEAST_S = 0.5  # for the rest, even where the calls took the whole grace period
BEYOND_S = 1.5  # after the grace period the process ends, whatever still runs


class Grace:
    """What is left of the time for the end, which begins when that is first asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: float | None = None

    def left(self) -> float:
        """Seconds, at least LEAST_S; also where the server ends by a fault."""
        if self._begun is None:
            self._begun = time.monotonic()
        return max(LEAST_S, self._seconds - (time.monotonic() - self._begun))


@contextmanager
def ending(grace_s: float) -> Iterator[asyncio.Event]:
    """An event that SIGTERM, SIGINT or SIGHUP sets, inside a running loop.

    A second signal ends the process at once, and so does the end of the grace period, also after
    the block: a thread that waits for a disk cannot be cancelled, and would hold the process.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled: list[int] = []

    def end(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)  # processes that this one started end with their pipes
        log.info("draining", extra={"signal": number.name, "grace_s": grace_s})
        last = threading.Timer(grace_s + BEYOND_S, _leave)
        last.daemon = True
        last.start()
        stop.set()

    for name in ENDINGS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
            handled.append(number)
    try:
        yield stop
    finally:
        if not stop.is_set():  # else a second signal still has its meaning
            for number in handled:
                loop.remove_signal_handler(number)


def _leave() -> None:
    """End without the rest of the program; an engine that hangs would not notice by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(0)


async def first_of(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Until the task is done or `stop` is set; then the task has ended either way."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for each in (task, stopped):
        each.cancel()
    await asyncio.wait({task, stopped})

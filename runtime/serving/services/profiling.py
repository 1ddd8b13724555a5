"""Profiles for callers far away: one at a time, in a thread, ended with its call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from runtime.cancel import Cancel
from runtime.profile_items import items_from
from runtime.profiler import profile
from runtime.run_record import RunRecord
from runtime.serving.storage.uploads import Stored
from runtime.wire.refused import exhausted, invalid

MAX_THREADS = 256
MAX_RUNS = 1_000_000
MAX_TIME_S = 3600.0


@dataclass(frozen=True)
class Wish:
    """What a caller asks for. No targets mean all; times are seconds."""

    targets: tuple[str, ...] = ()
    threads: int = 1
    runs: int = 100
    per_op: bool = False
    min_time_s: float = 1.0
    max_time_s: float = 120.0

    def check(self) -> None:
        """Raise Refused, INVALID_ARGUMENT, for numbers that no profile has."""
        for name, value, most in (
            ("threads", self.threads, MAX_THREADS),
            ("runs", self.runs, MAX_RUNS),
            ("min_time_s", self.min_time_s, MAX_TIME_S),
            ("max_time_s", self.max_time_s, MAX_TIME_S),
        ):
            if not (math.isfinite(value) and 0 < value <= most):
                raise invalid(f"expected a {name} of at most {most:g}, got {value:g}")
        if len(set(self.targets)) != len(self.targets):
            raise invalid(f"a target is named twice: {', '.join(self.targets)[:200]}")


@dataclass(frozen=True)
class Step:
    """A word of progress; fraction is in [0, 1]."""

    message: str
    fraction: float


class Profiling:
    """The one profile that runs on this device, and the digest of its bundle."""

    def __init__(self, name: str, served: Callable[[], int]) -> None:
        """`name` is the device's, served() how many inference requests were answered so far."""
        self._name, self._served = name, served
        self._executor = ThreadPoolExecutor(1, "profile")
        self.digest: str | None = None

    async def run(self, stored: Stored, wish: Wish, cancel: Cancel) -> AsyncIterator[Step | str]:
        """Steps, then the run record as JSON.

        Ends at once when `cancel` does or when nobody takes the next step. Raises Refused:
        RESOURCE_EXHAUSTED while another profile runs, RuntimeFault for an unknown target.
        """
        if self.digest is not None:
            raise exhausted(
                f"busy: the bundle {self.digest[:12]} is being profiled, and two at once would "
                "disturb each other; try again later"
            )
        wish.check()
        paths = [stored.bundle.artifact_path(target) for target in wish.targets] or [stored.path]
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | None] = asyncio.Queue()

        def tell(message: str, fraction: float) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(steps.put_nowait, Step(message, fraction))

        def measure() -> RunRecord:
            before = self._served()
            record = profile(
                items_from(paths),
                wish.threads,
                wish.runs,
                min_time_s=wish.min_time_s,
                max_time_s=wish.max_time_s,
                per_op=wish.per_op,
                progress=tell,
                cancel=cancel,
            )
            record.environment.name = self._name
            record.notes += _disturbed(self._served() - before)
            return record

        self.digest = stored.digest
        job = loop.run_in_executor(self._executor, measure)
        job.add_done_callback(lambda done: self._over(done, steps))
        try:
            while (step := await steps.get()) is not None:
                yield step
            yield job.result().model_dump_json(exclude_none=True)
        finally:
            cancel.cancel()

    def _over(self, job: asyncio.Future[RunRecord], steps: asyncio.Queue[Step | None]) -> None:
        """The thread has ended, whoever still listens."""
        if not job.cancelled():
            job.exception()  # asked for, so that asyncio does not log it where nobody listens
        self.digest = None
        steps.put_nowait(None)


def _disturbed(requests: int) -> list[str]:
    if not requests:
        return []
    return [
        f"{requests} inference requests were served on the device meanwhile: they may have "
        "disturbed these numbers"
    ]

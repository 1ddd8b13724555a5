"""The networks to be measured are made by several worker processes side by side."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converters.bundle_writer import writing
from converters.interrupts import uninterrupted
from converters.refs.base import Source
from converters.slim.cost import bundles
from converters.slim.cost.probe_worker import LONG, SHORT
from converters.slim.families.base import Family, Part
from converters.workers import Worker

WORKER = "converters.slim.cost.probe_worker"
TEMPORARY = "the networks to be measured (TMPDIR names their folder)"


@dataclass(frozen=True)
class Order:
    """What to make in a folder of its own: a part's two probes, or a network that save() put there.

    made are the bundles that come of it.
    """

    folder: Path
    part: Part | None = None

    @property
    def made(self) -> list[Path]:
        """The bundles' folders, the shorter probe first."""
        if self.part is None:
            return [self.folder]
        return [self.folder / SHORT, self.folder / LONG]

    def clear(self) -> None:
        """Take away what was made."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Made:
    """What came of an order: how many times the long probe has the part more, or why nothing."""

    times: int = 0
    error: str | None = None


class Makers:
    """Worker processes for one target. They start with the first order and wait between orders.

    On leaving its `with` block none is left. jobs is how many work side by side, by default one a
    core.
    """

    def __init__(self, target: str, precision: str, scratch: Path, jobs: int | None = None) -> None:
        self._target, self._precision, self._scratch = target, precision, scratch
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._jobs = max(1, jobs or cores or 1)
        self._lock = threading.Lock()
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._started: list[Worker] = []
        self._stopped, self._places = False, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def stopped(self) -> bool:
        """Whether it is over: by stop(), or by what was raised in make()."""
        return self._stopped

    def stop(self) -> None:
        """End every worker, and let no other start."""
        with uninterrupted():
            with self._lock:
                self._stopped = True
            for worker in self._started:
                worker.stop()

    def make(self, family: Family, orders: list[Order]) -> dict[Order, Made]:
        """Carry out the orders. What fails in one is in its answer, the others are made.

        Raises ConvertError where no worker can be started.
        """
        executor = ThreadPoolExecutor(min(self._jobs, len(orders)) or 1, "edgevit-probe")
        try:
            futures = {order: executor.submit(self._one, family, order) for order in orders}
            for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                future.result()
            return {order: future.result() for order, future in futures.items()}
        except BaseException:
            self.stop()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def place(self) -> Path:
        """A new folder for an order."""
        self._places += 1
        folder = self._scratch / f"order-{self._places}"
        with writing(TEMPORARY):
            folder.mkdir(parents=True)
        return folder

    def _one(self, family: Family, order: Order) -> Made:
        question: dict[str, Any] = {"folder": str(order.folder), "precision": self._precision}
        if order.part is not None:
            question |= {"family": _dotted(family), "part": asdict(order.part)}
        worker = self._take()
        (answer,) = worker.run(question)
        if "error" not in answer:
            self._idle.put(worker)
            return Made(int(answer.get("times", 0)))
        if worker.process.poll() is None:  # the order failed, not the process
            self._idle.put(worker)
        return Made(error=str(answer["error"]))

    def _take(self) -> Worker:
        """A worker that waits for an order, or a new one."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        with self._lock, writing(TEMPORARY):
            if self._stopped:
                raise CancelledError
            log = self._scratch / f"{self._target}-{len(self._started)}.log"
            worker = Worker.start(self._target, log, self._scratch, 1, WORKER)
            self._started.append(worker)
        return worker


def put(source: Source, order: Order) -> None:
    """Prepare a whole network for its order. Raises ConvertError."""
    prepared = bundles.prepare(source)
    with writing(TEMPORARY):
        bundles.save(prepared, order.folder)


def _dotted(family: Family) -> str:
    """'module:Class', from which a worker makes the same family."""
    kind = type(family)
    return f"{kind.__module__}:{kind.__qualname__}"

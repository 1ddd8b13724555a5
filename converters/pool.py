"""The workers of one conversion, a target each, as many at a time as there are cores."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.interrupts import uninterrupted
from converters.lower.base import TARGETS
from converters.progress import Event, Progress, Stage
from converters.workers import Worker
from runtime.manifest import Failure


@dataclass
class Outcome:
    """Answers of one worker, as they come.

    seconds maps a stage to its time. disk is (errno, folder) where a disk took no more.
    """

    stage: Stage = Stage.LOWER
    seconds: dict[str, float] = field(default_factory=dict)
    lowered: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    disk: tuple[int, str] | None = None


class Pool:
    """The worker processes of one conversion; the dearest targets start first and at once.

    On leaving its `with` block no worker is left, and nothing they wrote to `scratch` is needed.
    """

    def __init__(self, targets: list[str], logs: Path, scratch: Path, jobs: int | None) -> None:
        """jobs is how many targets convert side by side, at most one a core by default."""
        self.order = sorted(targets, key=lambda t: -TARGETS[t].cost)
        self._logs, self._scratch = logs, scratch
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.jobs = max(1, min(jobs or (cores or 1), len(targets)))
        self.threads = max(1, (cores or 1) // self.jobs)
        self._ahead: dict[str, Worker] = {}
        self._started: list[Worker] = []
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Pool:
        try:
            self._ahead = {t: self._start(t) for t in self.order[: self.jobs]}
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, jobs: dict[str, dict[str, Any]], progress: Progress) -> dict[str, Outcome]:
        """Convert every target. Whatever is raised here or in a thread ends all workers."""
        executor = ThreadPoolExecutor(self.jobs, thread_name_prefix="edgevit-target")
        try:
            futures = {t: executor.submit(self._one, t, jobs[t], progress) for t in self.order}
            for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                future.result()  # raises at once, while others may still run
            return {t: futures[t].result() for t in jobs}
        except BaseException:
            self.stop()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """End every worker, and let no other start."""
        with uninterrupted():
            with self._lock:
                self._stopped = True
            for worker in self._started:
                worker.stop()

    def _start(self, target: str) -> Worker:
        with self._lock:
            if self._stopped:
                raise CancelledError
            worker = Worker.start(target, self._logs / f"{target}.log", self._scratch, self.threads)
            self._started.append(worker)
        return worker

    def _one(self, target: str, job: dict[str, Any], progress: Progress) -> Outcome:
        worker = self._ahead.pop(target, None) or self._start(target)
        outcome = Outcome()
        for answer in worker.run(job):
            if self._stopped:  # we ended it: that is no failure of the target
                raise CancelledError
            _take(outcome, target, answer, progress, f"{self._logs.name}/{target}.log")
        worker.stop()
        return outcome


def _take(
    outcome: Outcome, target: str, answer: dict[str, Any], progress: Progress, log: str
) -> None:
    """Book one answer of a worker and tell it on."""
    if "error" in answer:
        outcome.failure = Failure(stage=outcome.stage, error=answer["error"], log=log)
        outcome.disk = answer.get("disk")
        progress(Event(outcome.stage, target, error=answer["error"]))
        return
    if "done" in answer:
        outcome.seconds["import"] = answer["import_s"]
        return
    stage = outcome.stage = Stage(answer.pop("stage"))
    if answer.get("begin"):
        progress(Event(stage, target))
        return
    outcome.seconds[stage] = answer.pop("seconds")
    if stage is Stage.LOWER:
        outcome.lowered = answer
        progress(Event(stage, target, outcome.seconds[stage]))
        return
    outcome.verified = answer
    verdict = answer["verification"]
    progress(
        Event(
            stage,
            target,
            outcome.seconds[stage],
            error=verdict["reason"] if verdict["status"] == "failed" else None,
            detail=verdict["status"],
        )
    )

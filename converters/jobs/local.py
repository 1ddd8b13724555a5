"""Jobs side by side, each in a process of its own: steps that follow one another.

A process has what it needs in files and its orders in JSON, so nothing of ours is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from converters.jobs.kit import Kit
from converters.jobs.progress import Event, Progress, State
from converters.jobs.steps import Step, is_done
from runtime.interpreter import command, environment, how_it_ended

GRACE_S = 5.0
LOG_TAIL = 8


@dataclass(frozen=True)
class Job:
    """Steps that are done one after another; its log has the job's name."""

    name: str
    steps: tuple[Step, ...]

    def message(self, steps: Path, tasks: str) -> dict[str, Any]:
        """The job as a process gets it; `tasks` is the table of a Kit."""
        return {
            "name": self.name,
            "tasks": tasks,
            "orders": [asdict(step.order()) for step in self.steps],
            "steps": str(steps),
        }


class Runner(Protocol):
    """Does jobs side by side."""

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Do all of them, or raise what the first one that failed raised."""
        ...


@dataclass(frozen=True)
class Folders:
    """Where a run keeps its steps' outputs, logs and temporary files."""

    steps: Path
    logs: Path
    temporary: Path


class LocalRunner:
    """Jobs in processes of this machine, `jobs` at a time, each held to `threads` threads."""

    def __init__(self, folders: Folders, jobs: int, threads: int, kit: Kit) -> None:
        self.folders, self.jobs, self.threads, self.kit = folders, jobs, threads, kit
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Do the jobs that are not done; whatever is raised, no process is left.

        Raises the kit's errors: what a step raised, by its message and exit code.
        """
        waiting = undone(jobs, self.folders.steps, progress)
        if not waiting:
            return
        executor = ThreadPoolExecutor(min(self.jobs, len(waiting)), "edgevit-job")
        try:
            futures = [executor.submit(self._one, job, progress) for job in waiting]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            self._stop()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _one(self, job: Job, progress: Progress) -> None:
        log = self.folders.logs / f"{job.name}.log"
        process, answers = self._start(log)
        failure: Exception | None = None
        finished = False
        try:
            assert process.stdin is not None
            message = json.dumps(job.message(self.folders.steps, self.kit.tasks))
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(message.encode() + b"\n")
                process.stdin.flush()
            for line in answers:
                with contextlib.suppress(json.JSONDecodeError):  # it died within a line
                    answer = json.loads(line)
                    finished |= bool(answer.get("done"))
                    failure = took(answer, job, log, progress, self.kit) or failure
        finally:
            answers.close()
            end(process)
            with self._lock:
                self._processes.discard(process)
        if self._stopped:
            raise CancelledError
        if failure is not None:
            raise failure
        if not finished:
            raise self.kit.failed(
                f"the job {job.name} ended with {how_it_ended(process.returncode)} before it was "
                f"done{tail(log)}"
            )

    def _start(self, log: Path) -> tuple[subprocess.Popen[bytes], Any]:
        with self._lock:
            if self._stopped:
                raise CancelledError
            read_end, write_end = os.pipe()
            with log.open("wb") as chatter:
                try:
                    process = subprocess.Popen(
                        command("converters.jobs.worker", str(write_end)),
                        stdin=subprocess.PIPE,
                        stdout=chatter,
                        stderr=subprocess.STDOUT,
                        pass_fds=(write_end,),
                        env={
                            **environment(self.threads),
                            "TMPDIR": str(self.folders.temporary),
                            "PYTHONUNBUFFERED": "1",
                            # Threads that wait for each other by spinning take the time of others.
                            "OMP_WAIT_POLICY": "PASSIVE",
                        },
                        start_new_session=True,  # Ctrl-C is ours to handle
                    )
                except BaseException:
                    os.close(read_end)
                    raise
                finally:
                    os.close(write_end)
            self._processes.add(process)
        return process, os.fdopen(read_end, "r", encoding="utf-8")

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            kill(process)


def undone(jobs: Sequence[Job], steps: Path, progress: Progress) -> list[Job]:
    """The jobs with something left to do; the others' steps are told as reused."""
    waiting = []
    for job in jobs:
        if all(is_done(step, steps) for step in job.steps):
            for step in job.steps:
                progress(Event(step.name, State.REUSED, 1.0))
        else:
            waiting.append(job)
    return waiting


def took(
    answer: dict[str, Any], job: Job, log: Path, progress: Progress, kit: Kit
) -> Exception | None:
    """Tell one answer of a process on; an error comes back."""
    if "step" in answer:
        progress(Event(answer["step"], State(answer["state"]), answer["share"], answer["text"]))
    if "error" not in answer:
        return None
    if answer["exit_code"] is None:
        failed: Exception = kit.failed(f"the job {job.name} failed: {answer['error']}{tail(log)}")
        return failed
    error = kit.error(answer["error"])
    error.exit_code = answer["exit_code"]
    found: Exception = error
    return found


def tail(log: Path) -> str:
    """The end of a log, on lines of its own."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    except OSError:
        return ""
    return "".join(f"\n  | {line}" for line in lines) + f"\n  (log: {log})"


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close its input, which ends it, wait, and use force where it does not follow."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        kill(process)
        process.wait()

"""The same jobs on a Ray cluster: files travel there and back as archives.

Ray's machines need edgevit with the extras that the tasks need, and the data under the same
reference; a model's weights travel with the job.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from converters.jobs.kit import Kit
from converters.jobs.local import Folders, Job, took, undone
from converters.jobs.progress import Progress
from converters.jobs.steps import is_done
from runtime.errors import missing_extra
from runtime.interpreter import THREAD_VARIABLES

LOCAL = "local"
CLIENT = "ray://"
KNOCK_S = 5.0
POLL_S = 0.2


class RayRunner:
    """Jobs on the cluster at `address` (HOST:PORT, ray://HOST:PORT, auto), or a Ray started here.

    Each job takes `threads` CPUs. Raises the kit's error where Ray cannot be reached.
    """

    def __init__(self, folders: Folders, address: str, threads: int, kit: Kit) -> None:
        self.folders, self.address, self.threads, self.kit = folders, address, threads, kit

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Do the jobs that are not done. Raises as LocalRunner does."""
        waiting = undone(jobs, self.folders.steps, progress)
        if not waiting:
            return
        with self._connected() as ray:
            from ray.util.queue import Queue

            news = Queue(actor_options={"num_cpus": 0})
            remote = ray.remote(num_cpus=self.threads)(remote_job)
            running = {
                remote.remote(
                    job.message(Path(), self.kit.tasks), self._inputs(job), news, self.threads
                ): job
                for job in waiting
            }
            failure: Exception | None = None
            while running and failure is None:
                done, _ = ray.wait(list(running), timeout=POLL_S)
                while not news.empty():
                    name, answer = news.get()
                    job = next(job for job in jobs if job.name == name)
                    failure = took(answer, job, self._log(job), progress, self.kit) or failure
                for reference in done:
                    job = running.pop(reference)
                    self._take(job, reference, ray)
            for reference in running:
                ray.cancel(reference, force=True)
            # What a job told last may have come after its output.
            while not news.empty():
                name, answer = news.get()
                job = next(job for job in jobs if job.name == name)
                failure = took(answer, job, self._log(job), progress, self.kit) or failure
            if failure is not None:
                raise failure
        for job in waiting:
            for step in job.steps:
                if not is_done(step, self.folders.steps):
                    raise self.kit.failed(
                        f"the job {job.name} came back from Ray without {step.name}"
                    )

    def _inputs(self, job: Job) -> dict[str, bytes]:
        """The folders that go in from outside the job, and those of its steps that are done."""
        own = {step.folder for step in job.steps}
        wanted = {given.folder for step in job.steps for given in step.inputs.values()} | own
        return {
            name: packed(self.folders.steps / name)
            for name in sorted(wanted)
            if (self.folders.steps / name).is_dir()
        }

    def _take(self, job: Job, reference: Any, ray: Any) -> None:
        """Unpack the outputs of a job that ended."""
        try:
            outputs, log = ray.get(reference)
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise self.kit.failed(f"the job {job.name} failed on Ray: {first}") from error
        self._log(job).write_text(log, encoding="utf-8")
        for name, archive in outputs.items():
            unpack(archive, self.folders.steps, name)

    def _log(self, job: Job) -> Path:
        return self.folders.logs / f"{job.name}.log"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise missing_extra("--ray", "ray", "ray") from error
        variables = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address == LOCAL:
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            options["include_dashboard"] = False
        else:
            options["address"] = self.address
        try:
            knock(self.address)
            with _our_signals():
                ray.init(runtime_env={"env_vars": variables}, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise self.kit.error(
                f"Ray at '{self.address}' cannot be used: {first}. Give HOST:PORT of its head, "
                "ray://HOST:PORT of its client server, or local"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def knock(address: str) -> None:
    """See whether anybody listens there: Ray itself waits for minutes. Raises OSError."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_S).close()


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM, which ends us with another code than ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def remote_job(
    message: dict[str, Any], inputs: dict[str, bytes], news: Any, threads: int
) -> tuple[dict[str, bytes], str]:
    """Do a job's steps in a temporary folder: the new outputs as archives, and the log."""
    from converters.jobs.worker import carried_out

    log = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="edgevit-") as place:
        steps = Path(place) / "steps"
        steps.mkdir()
        for folder, archive in inputs.items():
            unpack(archive, steps, folder)
        for order in message["orders"]:
            if "state" in order["settings"]:
                order["settings"]["state"] = str(Path(place) / "states" / order["output"])
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            carried_out(message, steps, lambda **answer: news.put((message["name"], answer)))
        outputs = {
            order["output"]: packed(steps / order["output"])
            for order in message["orders"]
            if order["output"] not in inputs and (steps / order["output"]).is_dir()
        }
    return outputs, log.getvalue()


def packed(folder: Path) -> bytes:
    """A folder's files as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(folder, arcname=".")
    return archive.getvalue()


def unpack(archive: bytes, parent: Path, name: str) -> None:
    """The archive's files as the folder parent/name, which appears whole, if it is not there."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as place:
        new = Path(place) / "folder"
        new.mkdir()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(new, filter="data")
        if not (parent / name).exists():
            new.rename(parent / name)

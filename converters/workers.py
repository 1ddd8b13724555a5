"""One worker process: start it, feed it a job, read its answers, and end it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

GRACE_S = 5.0
# Where this process found its packages when it started: a model's own folder, which is added to
# sys.path later, must not hide a vendor's package from a worker.
IMPORT_PATH = [str(Path(__file__).parents[1]), *filter(None, sys.path)]


@dataclass
class Worker:
    """A process that converts one target; it imports its vendor's tools from the start."""

    target: str
    log: Path
    process: subprocess.Popen[bytes]
    answers: IO[str]
    _log_file: IO[bytes] = field(repr=False)

    @classmethod
    def start(
        cls,
        target: str,
        log: Path,
        scratch: Path,
        threads: int,
        module: str = "converters.worker",
    ) -> Worker:
        """Start the process. Its chatter goes to `log`; `threads` bounds its CPU threads.

        Its temporary files go to `scratch` for others to clear away, since it may be killed.
        `module` is what it runs. Raises OSError where it cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(IMPORT_PATH),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(scratch),
        }
        with contextlib.ExitStack() as opened:
            log_file = opened.enter_context(log.open("wb"))
            read_end, write_end = os.pipe()
            answers = opened.enter_context(os.fdopen(read_end, "r", encoding="utf-8"))
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, target, str(write_end)],
                    stdin=subprocess.PIPE,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end,),
                    env=environment,
                    start_new_session=True,  # Ctrl-C is ours to handle; we end it and its children
                )
            finally:
                os.close(write_end)
            opened.pop_all()
        return cls(target, log, process, answers, log_file)

    def run(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand over the job and give its answers; a worker that dies gives an error as the last."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        for line in self.answers:
            try:
                answer = json.loads(line)
            except json.JSONDecodeError:
                break  # it died within a line
            yield answer
            if "done" in answer or "error" in answer:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        self.stop()
        how = _end(self.process.returncode)
        yield {"error": f"the {self.target} worker {how} before it was done"}

    def stop(self) -> None:
        """End the process and its children, free its pipes; safe at any time and more than once."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # it has nothing to tidy up
            self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.answers.close()
        self._log_file.close()


def _end(code: int) -> str:
    """'was ended by SIGSEGV' or 'ended with code 3'."""
    if code >= 0:
        return f"ended with code {code}"
    names = {s.value: s.name for s in signal.Signals}
    why = " (as a system does that runs out of memory)" if -code == signal.SIGKILL else ""
    return f"was ended by {names.get(-code, f'signal {-code}')}{why}"

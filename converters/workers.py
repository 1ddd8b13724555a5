"""Start worker processes, feed them jobs, read their answers, and end them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

GRACE_S = 5.0


@dataclass
class Worker:
    """A process that converts one target; it imports its vendor's tools from the start."""

    target: str
    log: Path
    process: subprocess.Popen[bytes]
    answers: IO[str]
    _log_file: IO[bytes] = field(repr=False)

    @classmethod
    def start(cls, target: str, log: Path, threads: int) -> Worker:
        """Start the process. Its chatter goes to `log`; `threads` bounds its CPU threads."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log_file = log.open("wb")
        read_end, write_end = os.pipe()
        # The worker imports the packages that this process runs, wherever they lie.
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONUNBUFFERED": "1",
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "converters.worker", target, str(write_end)],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle; the worker is ended by its id
            )
        finally:
            os.close(write_end)
        return cls(target, log, process, os.fdopen(read_end, "r"), log_file)

    def run(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand over the job and give its answers; a worker that dies gives an error as the last."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        for line in self.answers:
            answer = json.loads(line)
            yield answer
            if "done" in answer or "error" in answer:
                return
        code = self.process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        yield {
            "error": f"the {self.target} worker {how} without an answer",
            "at": "lower",
            "disk": None,
        }

    def stop(self) -> None:
        """End the process and free its pipes; safe to call at any time, more than once."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.answers.close()
        self._log_file.close()

    def log_tail(self, lines: int = 12) -> str:
        """The end of what the vendor printed."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(encoding="utf-8", errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""

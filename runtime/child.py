"""A measuring process seen from the parent: start, ask with a deadline, end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

# The import path is the parent's own and `runtime` is the parent's own package, so that the child
# runs the same code from any working directory, installed or not.
PACKAGE = Path(__file__).resolve().parent
START = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path[:], package = json.loads(sys.argv[1])
spec = spec_from_file_location(
    "runtime", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["runtime"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["runtime"])
from runtime.measure import main
main()
"""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
STDERR_TAIL = 400
PATIENCE_S = 3.0


class ChildFailedError(Exception):
    """The process died, hung, or answered with an error; the text is the reason."""


class Child:
    """One fresh interpreter that runs runtime.measure."""

    def __init__(self, threads: int) -> None:
        """Start it, with the numeric libraries held to `threads` threads."""
        # A file, not a pipe: nobody reads it while the child runs, and it must never block.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, json.dumps([sys.path, str(PACKAGE)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a question and wait for its answer. Raises ChildFailedError."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # a dead child is noticed below, with its exit code
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            tail = self._tail()
            self.close(patience_s=0)
            raise ChildFailedError(
                f"no answer to '{question['do']}' within {timeout_s:.0f} s; "
                f"the measuring process was ended{tail}"
            ) from None
        if not line:
            self._process.wait()
            self._answers.put("")  # a later question gets the same answer
            raise ChildFailedError(
                f"the measuring process ended at '{question['do']}' with "
                f"{_how_it_ended(self._process.returncode)}{self._tail()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailedError(answer["error"])
        return answer

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the process: by end of input, and by force if it does not follow."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(PATIENCE_S)
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def _tail(self) -> str:
        if self._stderr.closed:
            return ""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_TAIL))
        text = " ".join(self._stderr.read().decode("utf-8", "replace").split())
        return f"; its last words: {text}" if text else ""


def _how_it_ended(code: int) -> str:
    """'exit code 3' or 'signal SIGSEGV'."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

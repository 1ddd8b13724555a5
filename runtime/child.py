"""A measuring process seen from the parent: start, ask with a deadline, end."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import Any

from runtime.interpreter import command, environment, how_it_ended, last_words

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
            command("runtime.measure"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=environment(threads),
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
            tail = last_words(self._stderr)
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
                f"{how_it_ended(self._process.returncode)}{last_words(self._stderr)}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailedError(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process at once, from any thread; a question under way fails."""
        self._process.kill()

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

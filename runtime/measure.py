"""The process in which one artefact is measured. It answers one JSON line to each JSON line.

The parent (runtime/profiler.py) asks: load, warm_up, block, memory, per_op, delegation; between
questions this process waits on the pipe and uses no core. End of input ends it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil

from runtime.errors import RuntimeFault
from runtime.inputs import random_input, to_input
from runtime.sessions.base import Array, Session, import_engine, open_session

STEADY = 0.03  # windows agree: largest median / smallest - 1
WINDOWS = 3  # consecutive windows that must agree
WINDOW_MS = 30.0
WINDOW_RUNS = (3, 50)
WARM_UP_LIMIT_MS = 10_000.0


class Measuring:
    """The state behind the questions: a session and its input."""

    session: Session
    x: Array

    def load(self, question: dict[str, Any]) -> dict[str, Any]:
        """Import the engine, load the file, run once; milliseconds and bytes."""
        if question["cores"] is not None:
            os.sched_setaffinity(0, question["cores"])
        path, threads = Path(question["path"]), int(question["threads"])
        picture = _first_picture(question["reference"])
        start = time.perf_counter()
        import_engine(path)
        imported = time.perf_counter()
        before = psutil.Process().memory_info().rss
        start_load = time.perf_counter()
        self.session = open_session(path, threads)
        loaded = time.perf_counter()
        after = psutil.Process().memory_info().rss
        spec = self.session.input
        self.x = random_input(spec) if picture is None else to_input(picture, spec)
        gc.collect()
        gc.disable()
        first = self._time_runs(1)[0]
        return {
            "import_ms": (imported - start) * 1e3,
            "load_ms": (loaded - start_load) * 1e3,
            "first_run_ms": first,
            "engine": self.session.engine,
            "engine_version": self.session.engine_version,
            "input_shape": list(self.x.shape),
            "input_dtype": spec.dtype,
            "before_load": before,
            "after_load": after,
        }

    def warm_up(self, _: dict[str, Any]) -> dict[str, Any]:
        """Run until WINDOWS consecutive windows have medians within STEADY, or the time is up."""
        medians: list[float] = []
        runs, spent, steady = 0, 0.0, False
        guess = self._time_runs(1)[0]
        while not steady and spent < WARM_UP_LIMIT_MS:
            low, high = WINDOW_RUNS
            window = self._time_runs(min(max(math.ceil(WINDOW_MS / max(guess, 1e-3)), low), high))
            runs, spent, guess = runs + len(window), spent + sum(window), statistics.median(window)
            medians.append(guess)
            last = medians[-WINDOWS:]
            steady = len(last) == WINDOWS and max(last) / min(last) - 1 <= STEADY
        return {"runs": runs + 2, "steady": steady, "median_ms": guess}

    def block(self, question: dict[str, Any]) -> dict[str, Any]:
        """`runs` samples in milliseconds, after `discard` runs that bring the caches back."""
        self._time_runs(int(question["discard"]))
        return {"ms": self._time_runs(int(question["runs"]))}

    def memory(self, _: dict[str, Any]) -> dict[str, Any]:
        """The process's peak resident set so far, bytes."""
        return {"peak": _peak_rss()}

    def per_op(self, question: dict[str, Any]) -> dict[str, Any]:
        """Per-op times, or null and why."""
        ops, note = self.session.per_op(self.x, int(question["runs"]))
        return {"ops": [op.model_dump() for op in ops] if ops else None, "note": note}

    def delegation(self, _: dict[str, Any]) -> dict[str, Any]:
        """The delegation summary, or null."""
        found = self.session.delegation()
        return {"delegation": found.model_dump() if found else None}

    def _time_runs(self, runs: int) -> list[float]:
        run, x, clock = self.session.run, self.x, time.perf_counter_ns
        samples = []
        for _ in range(runs):
            start = clock()
            run(x)
            samples.append((clock() - start) / 1e6)
        return samples


def _first_picture(reference: str | None) -> Array | None:
    """The first picture (H,W,3) of a reference.npz."""
    if reference is None:
        return None
    try:
        with np.load(reference, allow_pickle=False) as arrays:
            picture: Array = arrays["inputs"][0].copy()
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise RuntimeFault(f"cannot take the input from {reference}: {error}") from error
    return picture


def _peak_rss() -> int:
    """Peak resident set, bytes.

    Linux: VmHWM, because ru_maxrss starts from the parent's size at fork. Elsewhere getrusage,
    which counts bytes on macOS.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer questions until the input ends. A fault is an answer: {"error": ...}."""
    measuring = Measuring()
    known = ("load", "warm_up", "block", "memory", "per_op", "delegation")
    for line in questions:
        question = json.loads(line)
        try:
            if question["do"] not in known:
                raise RuntimeFault(f"unknown question '{question['do']}'")
            answer = getattr(measuring, question["do"])(question)
        except RuntimeFault as fault:
            answer = {"error": str(fault)}
        except Exception as error:  # whatever an engine raises is this artefact's result
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; what engines print on stdout goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()

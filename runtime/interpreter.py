"""A fresh interpreter that runs the parent's own code, and how its end is told."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import IO

# The import path is the parent's own and `runtime` is the parent's own package, so that the child
# runs the same code from any working directory, installed or not.
PACKAGE = Path(__file__).resolve().parent
START = """
import json, signal, sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
sys.path[:], package, module, ignored = json.loads(sys.argv[1])
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
spec = spec_from_file_location(
    "runtime", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["runtime"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["runtime"])
import_module(module).main()
"""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
STDERR_TAIL = 400


def command(module: str, *arguments: str, ignored: tuple[signal.Signals, ...] = ()) -> list[str]:
    """The command line that runs `module`.main(), with `arguments` from sys.argv[2] on.

    The signals of `ignored` are ignored from the start.
    """
    start = json.dumps([sys.path, str(PACKAGE), module, [int(number) for number in ignored]])
    return [sys.executable, "-P", "-c", START, start, *arguments]


def environment(threads: int) -> dict[str, str]:
    """Our environment, with the numeric libraries held to `threads` threads."""
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))


def how_it_ended(code: int) -> str:
    """'exit code 3' or 'signal SIGSEGV', from the return code of subprocess."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_words(stderr: IO[bytes]) -> str:
    """'; its last words: ...' from the file a process wrote to, empty where it wrote nothing."""
    if stderr.closed:
        return ""
    stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, stderr.tell() - STDERR_TAIL))
    text = " ".join(stderr.read().decode("utf-8", "replace").split())
    return f"; its last words: {text}" if text else ""

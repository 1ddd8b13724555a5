"""The process that one artefact runs in, for an agent. See runtime/serving/engines/process.py.

It imports what the session needs and nothing else: its memory is counted. It ends when its socket
does, also in the middle of a run, so that it cannot outlive an agent that was killed.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from runtime.errors import RuntimeFault
from runtime.serving.engines.form import Form, Slot, check_answer
from runtime.serving.engines.messages import DONE, FAILED, HEADER, READY, RUN
from runtime.serving.engines.trim import trim
from runtime.sessions.base import Session, open_session

TEXT_LIMIT = 2000


def open_warm(path: Path, threads: int, max_batch: int) -> tuple[Session, Form]:
    """Open an artefact, run it once on zeros, and give back what only that needed.

    Raises RuntimeFault where it does not load or run.
    """
    session = open_session(path, threads)
    form = Form.of(session.input, session.output, max_batch)
    rows = form.rows_run([]) or 1
    x = np.zeros(session.input.shape_of(rows), session.input.dtype)
    wrong = check_answer(session.run(x), session.output, rows)
    if wrong is not None:
        raise RuntimeFault(f"{path.name}: {wrong}; convert it again")
    trim(path)
    return session, form


def main() -> None:
    """Load the artefact of the command line, then answer runs until the socket ends."""
    arguments = json.loads(sys.argv[2])
    with socket.socket(fileno=arguments["socket"]) as agent:
        threading.Thread(target=_end_with, args=(agent,), daemon=True).start()
        try:
            _serve(agent, arguments)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception as error:  # whatever an engine raises while it loads
            fault = isinstance(error, RuntimeFault)
            _tell(agent, FAILED, 0, str(error) if fault else f"{type(error).__name__}: {error}")
        sys.stderr.flush()
        os._exit(0)  # without the engine's destructors: nothing of them is needed, and some crash


def _serve(agent: socket.socket, arguments: dict[str, str | int]) -> None:
    path, fd = Path(str(arguments["path"])), int(arguments["memory"])
    session, form = open_warm(path, int(arguments["threads"]), int(arguments["max_batch"]))
    os.ftruncate(fd, form.size())
    slot = Slot(form, memoryview(mmap.mmap(fd, form.size())))
    os.close(fd)
    gc.collect()
    gc.freeze()
    ready = {
        "engine": session.engine,
        "engine_version": session.engine_version,
        "input": asdict(session.input),
        "output": asdict(session.output),
    }
    _tell(agent, READY, 0, json.dumps(ready))
    while question := agent.recv(RUN.size, socket.MSG_WAITALL):
        (rows,) = RUN.unpack(question)
        x, answer = slot.views(rows)
        start = time.perf_counter_ns()
        try:
            y = session.run(x)
            spent = time.perf_counter_ns() - start
            wrong = check_answer(y, form.output, rows)
            if wrong is None:
                answer[...] = y
        except Exception as error:  # whatever an engine raises is this run's answer
            spent, wrong = time.perf_counter_ns() - start, str(error) or type(error).__name__
        _tell(agent, DONE if wrong is None else FAILED, spent, wrong or "")


def _tell(agent: socket.socket, kind: int, spent_ns: int, text: str) -> None:
    raw = text[:TEXT_LIMIT].encode() if kind == FAILED else text.encode()
    agent.sendall(HEADER.pack(kind, len(raw), spent_ns) + raw)


def _end_with(agent: socket.socket) -> None:
    """End this process when the agent's end of the socket is gone, whatever it is doing."""
    end = select.poll()
    end.register(agent, 0)  # the end is always told, and nothing else wanted
    end.poll()
    os._exit(1)

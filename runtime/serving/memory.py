"""Memory of processes that share much of it: an agent and its engines."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


def memory_of(pids: Iterable[int]) -> int:
    """Bytes of the processes together; one that has gone counts nothing.

    The proportional set size where the system tells it (Linux), so that pages two of them share
    count once, else the resident size.
    """
    return sum(_memory(pid) for pid in pids)


def _memory(pid: int) -> int:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024  # kB
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0

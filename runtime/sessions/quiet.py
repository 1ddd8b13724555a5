"""Engines print from C to descriptors 1 and 2; keep that off the terminal, and for error messages.

The two descriptors belong to the whole process: what other threads print meanwhile is kept too,
so the block should be short (a load, never a run).
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ONE_AT_A_TIME = threading.RLock()


class Said:
    """What the engine printed; filled when the block ends."""

    text: str = ""

    def last_line(self) -> str:
        """The last line that says something, shortened to 300 characters; empty if none."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


@contextmanager
def engine_chatter() -> Iterator[Said]:
    """Send descriptors 1 and 2 to a buffer for the length of the block."""
    said = Said()
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):
                stream.flush()
        saved: list[tuple[int, int]] = []
        try:
            for fd in (1, 2):
                with suppress(OSError):  # a daemon may have closed it
                    saved.append((fd, os.dup(fd)))
                    os.dup2(sink.fileno(), fd)
            yield said
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(AttributeError, ValueError, OSError):
                    stream.flush()
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)
            sink.seek(0)
            said.text = sink.read().decode("utf-8", "replace")

"""How the C library keeps the memory of this process."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

ARENA_MAX = -8  # of mallopt in malloc.h of the GNU C library


def one_arena() -> None:
    """Let all threads share one heap; before the first of them. Linux with the GNU C library only.

    By itself the library gives threads heaps of their own, and what a request freed in one of them
    stays there, unused by the next request that another thread takes. Boards have little memory.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)

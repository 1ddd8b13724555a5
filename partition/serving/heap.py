"""Keep the memory of pictures that have gone, for those that come."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

KEPT = 32 << 20
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt in malloc.h of the GNU C library


def keep_freed_memory() -> None:
    """Let this process keep KEPT bytes that it has freed. Linux with the GNU C library only.

    A request is copied for each worker. By itself the C library takes the memory of a copy of some
    100 KB from the system and gives it back at once, or not, as its heap happens to lie; where it
    does, every page of it is cleared anew, which costs more than the copy.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            libc.mallopt(parameter, KEPT)

"""Give memory back that an engine needed for loading only."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

DONT_NEED = 4  # MADV_DONTNEED of Linux


def trim(artifact: Path) -> None:
    """Let go of the pages of the mapped artefact, and of the heap's free ones. Linux only.

    LiteRT keeps the file mapped, though XNNPACK has packed its weights into memory of its own. A
    page that is read again after all comes back from the page cache. Only mappings that nobody can
    write are touched: the file has all that they hold. ONNX Runtime reads the file into the heap,
    and what it freed of that the C library keeps until it is told to give it back.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, access, *_, name = line.split(maxsplit=5)
            if access[:2] == "r-" and name == str(artifact):
                start, end = (int(part, 16) for part in span.split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONT_NEED)
        libc.malloc_trim(0)  # of the GNU C library alone

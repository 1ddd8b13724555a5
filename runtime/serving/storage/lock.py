"""One agent a store: a lock that dies with its process."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from runtime.errors import RuntimeFault

PATIENCE_S = 0.5  # between taking the lock and signing it


class StoreLock:
    """Holds `path` by flock until release() or the end of this process, however it ends.

    The file stays: who removes a lock file may remove the next one's. It is not handed to child
    processes (O_CLOEXEC), so an engine process that outlives its agent holds nothing.
    """

    def __init__(self, path: Path) -> None:
        """Take it. Raises RuntimeFault naming the process that has it."""
        try:
            import fcntl
        except ImportError as error:
            raise RuntimeFault("a store needs POSIX file locks: Linux, macOS or WSL") from error
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise RuntimeFault(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            os.close(self._file)
            raise RuntimeFault(
                f"the store {path.parent} is in use by another agent{holder}; stop it first, or "
                "give this one a store of its own with --store"
            ) from None
        except OSError as error:
            os.close(self._file)
            raise RuntimeFault(
                f"cannot lock {path}: {error.strerror}; put the store on a local disk"
            ) from error
        sign = {
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # on a full disk the lock holds all the same, only unsigned
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(sign).encode(), 0)

    def release(self) -> None:
        """Let the next agent have it."""
        if self._file >= 0:
            with suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1


def _holder(file: int) -> str:
    """' (process 12, since ...)', '' where the holder did not sign in time."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with suppress(OSError, ValueError, KeyError, TypeError):
            sign = json.loads(os.pread(file, 1000, 0))
            return f" (process {int(sign['pid'])}, since {str(sign['started'])[:40]})"
        time.sleep(0.02)
    return ""

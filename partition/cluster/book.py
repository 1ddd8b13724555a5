"""The state of a cluster while several threads change it: after every change it is on the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partition.cluster.state import RunState, write_state
from partition.errors import PartitionError


class Book:
    """Owned by who has the lock of the cluster. Once closed nothing is written, and so nothing
    started, by threads that were left behind."""

    def __init__(self, plan_path: Path, folder: Path, state: RunState) -> None:
        """folder is PLAN.cluster."""
        self.folder = folder
        self.cancelled = threading.Event()
        self._plan_path, self._state = plan_path, state
        self._lock = threading.Lock()

    @property
    def state(self) -> RunState:
        """As it is now; a copy."""
        with self._lock:
            return self._state.model_copy(deep=True)

    @contextmanager
    def change(self) -> Iterator[RunState]:
        """The state to change; it is on the disk when the block has ended.

        Raises PartitionError where that fails, or after close().
        """
        with self._lock:
            if self.cancelled.is_set():
                raise PartitionError("the launch was interrupted")
            changed = self._state.model_copy(deep=True)
            yield changed
            if changed != self._state:
                write_state(self._plan_path, changed)
                self._state = changed

    def close(self) -> None:
        """No more changes; who waits for a process gives up."""
        self.cancelled.set()

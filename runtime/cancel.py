"""End a profile from outside, at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from runtime.child import Child
from runtime.errors import RuntimeFault

Progress = Callable[[str, float], None]


class Cancelled(RuntimeFault):
    """The profile was ended by who asked for it."""


class Cancel:
    """Given to profile(); cancel() may be called from any thread, also before it starts.

    A measuring process is ended in the middle of what it does, so that nobody waits for a slow
    model's block.
    """

    def __init__(self) -> None:
        """Not cancelled."""
        self._lock = threading.Lock()
        self._cancelled = False
        self._children: list[Child] = []

    def cancel(self) -> None:
        """End the measuring processes; the profiler raises Cancelled at its next step."""
        with self._lock:
            self._cancelled = True
            children = list(self._children)
        for child in children:
            child.kill()

    def checked(
        self, progress: Callable[[str, float], None] | None
    ) -> Callable[[str, float], None]:
        """The progress callback of a profile, which raises Cancelled where the profile is."""

        def tell(message: str, fraction: float) -> None:
            if self._cancelled:
                raise Cancelled("the profile was cancelled")
            if progress is not None:
                progress(message, fraction)

        return tell

    def watch(self, child: Child) -> None:
        """Have a process ended with the profile."""
        with self._lock:
            self._children.append(child)
            late = self._cancelled
        if late:
            child.kill()

"""Ctrl-C and the like: noted, and answered after the step that is under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NOTED = ("SIGINT", "SIGTERM", "SIGHUP")  # by name, since not every system knows SIGHUP


class Asked:
    """`number` is the signal that asked to stop, 0 while none did."""

    number: int = 0


@contextmanager
def noted() -> Iterator[Asked]:
    """Note the first such signal; the second one ends the process as it would have without this.

    Only the main thread takes signals, so in any other nothing is ever noted.
    """
    asked = Asked()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.number = number
        restore()

    if threading.current_thread() is threading.main_thread():
        for name in NOTED:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()

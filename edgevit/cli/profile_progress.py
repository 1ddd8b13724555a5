"""The bars of edgevit profile: one a device, on stderr, silent when that is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.devices.profiling import Told


@contextmanager
def watching() -> Iterator[Told]:
    """Bars that appear with the first word about each name."""
    from edgevit.cli.output import plain, stderr

    console = stderr()
    if not console.is_terminal:
        yield lambda name, text, done: None
        return
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    lock = Lock()
    with Progress(console=console, transient=True) as bars:

        def tell(name: str, text: str, done: float) -> None:
            with lock:
                if name not in tasks:
                    tasks[name] = bars.add_task(plain(name), total=1.0)
            words = plain(f"{name}: {text}" if name else text)
            bars.update(tasks[name], description=words, completed=done)

        yield tell

"""A line per stage on stderr while a conversion runs; silent where nobody watches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgevit.cli.output import stderr

if TYPE_CHECKING:
    from converters.progress import Event, Progress

WORDS = {
    "load": "load the model",
    "export": "export the graph",
    "reparam": "fold and prove",
    "lower": "convert",
    "verify": "verify",
    "bundle": "write the bundle",
}


@contextmanager
def drawn() -> Iterator[Progress]:
    """A progress listener that draws spinners, and finished stages with their seconds."""
    from converters.progress import silent

    console = stderr()
    if not console.is_terminal:
        yield silent
        return
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    lock = threading.Lock()
    tasks: dict[tuple[str, str | None], TaskID] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=False) as bars:

        def tell(event: Event) -> None:
            key = (event.stage.value, event.target)
            text = WORDS[event.stage] + (f" {event.target}" if event.target else "")
            with lock:
                if key not in tasks:
                    tasks[key] = bars.add_task(text, total=1)
                if event.error is not None:
                    bars.update(tasks[key], description=f"[red]{text}: failed[/]", completed=1)
                elif event.seconds is not None:
                    shown = f"{text} ({event.detail})" if event.detail else text
                    bars.update(tasks[key], description=shown.replace("_", " "), completed=1)

        yield tell

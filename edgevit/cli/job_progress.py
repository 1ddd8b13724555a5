"""What a run of resumable jobs shows on stderr while it works, and when it is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.jobs.progress import Event, Progress


@contextmanager
def drawn(out: Path, before: frozenset[str] = frozenset()) -> Iterator[Progress]:
    """A progress listener: a bar for each step on stderr, silent where nobody watches.

    Whatever cuts the run off, a line says how to go on, unless only steps `before` the first that
    writes into the folder had begun.
    """
    from converters.jobs.progress import State, silent
    from edgevit.cli.output import plain, stderr

    console = stderr()
    begun = False

    def noted(event: Event) -> None:
        nonlocal begun
        begun |= event.step not in before
        tell(event)

    tell = silent
    try:
        if not console.is_terminal:
            yield noted
            return
        from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        with Bars(*columns, console=console) as bars:

            def draw(event: Event) -> None:
                if event.step not in tasks:
                    tasks[event.step] = bars.add_task(event.step, total=1.0)
                task, text = tasks[event.step], event.step
                if event.state is State.REUSED:
                    text += " (done before)"
                elif event.state is State.RUNNING and event.text:
                    text += f": {event.text}"
                bars.update(task, description=plain(text), completed=event.share)

            tell = draw
            yield noted
    except BaseException:
        if begun:
            console.print(
                f"What is done is kept in {out}.partial: the same command goes on from there.",
                markup=False, soft_wrap=True,
            )  # fmt: skip
        raise

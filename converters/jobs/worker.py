"""The process of one job, started by converters/jobs/local.py.

It reads one line of JSON, the steps it is to do one after another, and answers with a line for
each piece of news on a descriptor of its own; what anyone prints goes to the job's log. It ends
with its parent, whose end closes our input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

WORDS = 4000  # of an error that are told on


def main() -> None:
    """Serve one job."""
    descriptor = int(sys.argv[2])
    # Ours alone: a converter's own processes must not keep it open.
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w", buffering=1, encoding="utf-8") as answers:

        def tell(**message: Any) -> None:
            answers.write(json.dumps(message) + "\n")

        line = sys.stdin.readline()
        if not line:
            return
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        job = json.loads(line)
        carried_out(job, Path(job["steps"]), tell)


def carried_out(job: dict[str, Any], steps: Path, tell: Any) -> None:
    """Do a job's steps, and tell how it ended: `done`, or `error` and our exit code, if any."""
    from converters.bundle_writer import CURES, full_disk
    from converters.errors import ConvertError

    try:
        serve(job["orders"], job["tasks"], steps, tell)
        tell(done=True)
    except Exception as error:
        traceback.print_exc()
        ours = getattr(error, "exit_code", None)
        told = str(error) if isinstance(ours, int) else f"{type(error).__name__}: {error}"
        disk = full_disk(error, steps, Path(tempfile.gettempdir()))
        if disk is not None:
            told, ours = f"cannot write {disk[1]}: {CURES[disk[0]]}", ConvertError.exit_code
        tell(error=told[:WORDS], exit_code=ours)


def serve(orders: list[dict[str, Any]], tasks: str, steps: Path, tell: Any) -> None:
    """Do the steps in their order, telling what happens to each."""
    from converters.jobs.kit import task_of
    from converters.jobs.progress import State
    from converters.jobs.steps import Order, carry_out

    for values in orders:
        order = Order(**values)

        def news(share: float, text: str, name: str = order.name) -> None:
            tell(step=name, state=State.RUNNING, share=share, text=text)

        tell(step=order.name, state=State.RUNNING, share=0.0, text="")
        new = carry_out(order, task_of(tasks, order.task), steps, news)
        tell(step=order.name, state=State.DONE if new else State.REUSED, share=1.0, text="")


def _end_with_the_parent() -> None:
    """Wait for the end of our input, which only the parent's end brings, and end too."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)

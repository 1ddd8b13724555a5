"""One target in one process: read a job, lower, verify on the real engine, answer.

Started as `python -m converters.worker TARGET FD`. Its standard output and error belong to the
vendor's chatter and go to a log file; the answers are JSON lines on the file descriptor FD. The
vendor packages are imported, and some rehearsed, at once, while the parent still exports and folds.
Its standard input stays open as long as the parent lives; when it closes, the process ends itself.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from converters.bundle_writer import full_disk


def main() -> int:
    """Serve one job. The exit code is 0 when an answer, good or bad, was given."""
    target, descriptor = sys.argv[1], int(sys.argv[2])
    # The inherited end is ours alone: a vendor's own child process must not keep it open.
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w", buffering=1) as answers:

        def tell(**message: Any) -> None:
            answers.write(json.dumps(message) + "\n")

        folders = [Path(tempfile.gettempdir())]
        try:
            started = time.perf_counter()
            from converters.lower.base import TARGETS
            from converters.worker_speed import rehearse, rest_the_collector, share_provenance

            importlib.import_module(TARGETS[target].module)
            rest_the_collector()
            share_provenance()
            import_s = time.perf_counter() - started
            if TARGETS[target].rehearsed and not _has_input():
                rehearse(target)
            line = sys.stdin.readline()
            if not line:
                return 0
            threading.Thread(target=_end_with_the_parent, daemon=True).start()
            job = json.loads(line)
            folders.insert(0, Path(job["folder"]))
            for stage, result in _run(target, job):
                tell(stage=stage, **result)
            tell(done=True, import_s=import_s)
        except Exception as error:
            traceback.print_exc()
            disk = full_disk(error, *folders)
            tell(
                error=f"{type(error).__name__}: {error}"[:4000],
                disk=(disk[0], str(disk[1])) if disk else None,
            )
    return 0


def _run(target: str, job: dict[str, Any]) -> Any:
    import torch

    from converters.lower.base import Job, lower_to
    from converters.verify import verify_artifact

    torch.set_num_threads(int(job["threads"]))
    folder = Path(job["folder"])
    started = time.perf_counter()
    yield "lower", {"begin": True}
    program = torch.export.load(job["program"])
    work = Job(
        file=folder / job["file"],
        precision=job["precision"],
        height=job["height"],
        width=job["width"],
        input_dtype=job["input_dtype"],
        description=job["description"],
        metadata=job["metadata"],
    )
    lowered = lower_to(target, program, work)
    yield (
        "lower",
        {
            "seconds": time.perf_counter() - started,
            "tool_versions": lowered.tool_versions,
            "rewrites": lowered.rewrites,
        },
    )
    started = time.perf_counter()
    yield "verify", {"begin": True}
    checked = verify_artifact(target, program, work, folder)
    yield "verify", {"seconds": time.perf_counter() - started, **checked}


def _has_input() -> bool:
    """Whether the job is there already, or the parent gone."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _end_with_the_parent() -> None:
    """Wait for the end of our input, which only the parent's end brings, and end too."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

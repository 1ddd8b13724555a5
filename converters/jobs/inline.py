"""Jobs one after another in this very process: for steps shorter than a process's start."""

from __future__ import annotations

from collections.abc import Sequence

from converters.jobs.kit import Kit, task_of
from converters.jobs.local import Folders, Job, undone
from converters.jobs.progress import Event, Progress, State
from converters.jobs.steps import carry_out


class InlineRunner:
    """The kit's tasks, in the order of the jobs; what a step raises comes up as it is."""

    def __init__(self, folders: Folders, kit: Kit) -> None:
        self.folders, self.kit = folders, kit

    def run(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Do the jobs that are not done."""
        for job in undone(jobs, self.folders.steps, progress):
            for step in job.steps:

                def tell(share: float, text: str, name: str = step.name) -> None:
                    progress(Event(name, State.RUNNING, share, text))

                task = task_of(self.kit.tasks, step.task)
                new = carry_out(step.order(), task, self.folders.steps, tell)
                progress(Event(step.name, State.DONE if new else State.REUSED, 1.0))

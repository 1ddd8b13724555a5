"""The jobs of a plan: those of converters.jobs, with the partitioner's tasks and errors."""

from __future__ import annotations

from converters.jobs import local
from converters.jobs.kit import Kit
from converters.jobs.local import Folders, Job, Runner
from partition.errors import PartitionError

__all__ = ["KIT", "Folders", "Job", "JobFailed", "LocalRunner", "Runner"]


class JobFailed(PartitionError):  # noqa: N818  # what happened, as the user reads it
    """A job ended without its output; the message has the end of its log."""

    exit_code = 1


KIT = Kit("partition.making.tasks:TASKS", PartitionError, JobFailed)


class LocalRunner(local.LocalRunner):
    """Jobs in processes of this machine, `jobs` at a time, each held to `threads` threads."""

    def __init__(self, folders: Folders, jobs: int, threads: int) -> None:
        super().__init__(folders, jobs, threads, KIT)

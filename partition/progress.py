"""What a partitioning tells while it runs. The command line draws it; a program may ignore it."""

from __future__ import annotations

from converters.jobs.progress import Event, Progress, State, silent

__all__ = ["Event", "Progress", "State", "silent"]

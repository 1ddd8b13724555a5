"""The steps of a plan, in PLAN.partial/steps: what was done before a run was cut off is kept."""

from __future__ import annotations

from converters.jobs.steps import (
    UNFINISHED,
    Step,
    Task,
    Tell,
    carry_out,
    is_done,
    output_of,
    seconds_of,
    sync,
)

__all__ = [
    "UNFINISHED",
    "Step",
    "Task",
    "Tell",
    "carry_out",
    "is_done",
    "output_of",
    "seconds_of",
    "sync",
]

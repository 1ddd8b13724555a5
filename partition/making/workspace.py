"""PLAN.partial, where a run works and is taken up again, and PLAN, which appears whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from converters.jobs import workspace as places
from converters.jobs.workspace import Workspace, linked
from partition.errors import PartitionError
from partition.plan import PLAN_NAME

__all__ = ["Workspace", "check_goal", "linked", "workspace", "writing"]

GOAL = places.Goal(
    what="plan", maker="edgevit-partition", mark="partition.json", name=PLAN_NAME,
    kind="edgevit-plan", error=PartitionError,
)  # fmt: skip


@contextlib.contextmanager
def workspace(out: Path, force: bool) -> Iterator[Workspace]:
    """The locked workspace beside `out`, with what an earlier run left in it.

    It stays where the block raises. Raises PartitionError where another process works in it, where
    the folder is not ours, or a disk refuses.
    """
    with places.workspace(out, force, GOAL) as space:
        yield space


def check_goal(out: Path, force: bool) -> None:
    """Refuse a goal that is there, unless it is a plan that may be replaced."""
    places.check_goal(out, force, GOAL)


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the system's refusals inside the block into one clear error about `what`."""
    with places.writing(what, GOAL):
        yield

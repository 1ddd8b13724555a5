"""Whose jobs they are: where their tasks are listed, and the errors that their failures become."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from converters.jobs.steps import Task


class Failure(Protocol):
    """An error type of ours; its objects have an `exit_code`."""

    def __call__(self, message: str, /) -> Any: ...


@dataclass(frozen=True)
class Kit:
    """tasks is "PACKAGE.MODULE:TABLE", a table of task names to "PACKAGE.MODULE:FUNCTION".

    error is what a step raised with an exit code, and failed what became of a job without one.
    """

    tasks: str
    error: Failure
    failed: Failure


def task_of(table: str, name: str) -> Task:
    """The function that does a task of a table, imported now."""
    task: Task = named(named(table)[name])
    return task


def named(dotted: str) -> Any:
    """What "PACKAGE.MODULE:NAME" names."""
    module, _, name = dotted.partition(":")
    return getattr(import_module(module), name)

"""Steps that a run which was cut off does not do again.

A step's output is a folder of its own, OUT.partial/steps/NAME-DIGEST, where the digest is over the
task, its settings and the digests of all that goes in. The folder is written under another name and
renamed when it is whole: where it is, the step is done, and where anything that goes in has
changed, it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.environment import edgevit_version

LETTERS = 16  # of the digest, in a folder's name
UNFINISHED = ".new-"
SECONDS = "seconds"  # a file with the time that the step took

Tell = Callable[[float, str], None]
"""The share of a step that is done, 0 to 1, and what it is at."""

Task = Callable[[Mapping[str, Any], Mapping[str, Path], Path, Tell], None]
"""Does a step: its settings, the folders that go in by their roles, the folder to fill."""


@dataclass(frozen=True)
class Step:
    """One step. `settings` decide the output; `free` (threads, say) do not, and both are JSON.

    inputs are the steps whose folders go in, by the role they have in the task.
    """

    name: str
    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Step] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over everything that decides the output."""
        content = {
            "task": self.task,
            "settings": self.settings,
            "inputs": {role: step.digest for role, step in self.inputs.items()},
            "edgevit": edgevit_version(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The name of its folder among the steps."""
        return f"{self.name}-{self.digest[:LETTERS]}"

    def order(self) -> Order:
        """The step as it is handed to a process."""
        return Order(
            self.name,
            self.task,
            {**self.settings, **self.free},
            {role: step.folder for role, step in self.inputs.items()},
            self.folder,
        )


@dataclass(frozen=True)
class Order:
    """What a process needs to do a step; inputs and output are folders' names among the steps."""

    name: str
    task: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    output: str


def is_done(step: Step, steps: Path) -> bool:
    """Whether its output is there."""
    return (steps / step.folder).is_dir()


def output_of(step: Step, steps: Path) -> Path:
    """The folder with the output of a step that is done."""
    return steps / step.folder


def seconds_of(step: Step, steps: Path) -> float:
    """How long a step that is done took."""
    return float((steps / step.folder / SECONDS).read_text())


def carry_out(order: Order, task: Task, steps: Path, tell: Tell) -> bool:
    """Do a step unless it is done; whether there was something to do."""
    output = steps / order.output
    if output.is_dir():
        return False
    new = steps / f"{UNFINISHED}{secrets.token_hex(8)}"
    new.mkdir()
    try:
        begun = time.perf_counter()
        task(order.settings, {r: steps / name for r, name in order.inputs.items()}, new, tell)
        (new / SECONDS).write_text(f"{time.perf_counter() - begun:.3f}\n")
        sync(new)
        try:
            new.rename(output)
        except OSError:
            if not output.is_dir():  # else another process was as far at the same moment
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True


def sync(folder: Path) -> None:
    """Bytes to the disk: a power cut must leave no empty file behind a name."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

"""PLAN.partial, where a run works and is taken up again, and PLAN, which appears whole.

    PLAN.partial/  partition.json   steps/   logs/   tmp/   plan/ (becomes PLAN)   old/ (was PLAN)

The folder is locked while a process works in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converters.bundle_writer import CURES
from converters.interrupts import uninterrupted
from partition.errors import PartitionError
from partition.making.jobs import Folders
from partition.making.steps import UNFINISHED, sync
from partition.plan import PLAN_NAME

MARK = "partition.json"
SUFFIX = ".partial"


@dataclass(frozen=True)
class Workspace:
    """The folders of one run; out is the plan that is to appear."""

    root: Path
    out: Path

    @property
    def folders(self) -> Folders:
        """Where jobs work."""
        return Folders(self.root / "steps", self.root / "logs", self.root / "tmp")

    @property
    def staged(self) -> Path:
        """The plan while it is put together."""
        return self.root / "plan"

    def publish(self, force: bool) -> None:
        """Rename the staged plan to its place, and take the workspace away.

        Raises PartitionError where something stands there; the work is kept.
        """
        check_goal(self.out, force)
        with writing(self.out):
            sync(self.staged)
            old = self.root / "old"
            with uninterrupted():
                replaced = self.out.exists()
                if replaced:
                    shutil.rmtree(old, ignore_errors=True)
                    self.out.rename(old)
                try:
                    self.staged.rename(self.out)
                except OSError:
                    if replaced:
                        old.rename(self.out)
                    raise
                shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def workspace(out: Path, force: bool) -> Iterator[Workspace]:
    """The locked workspace beside `out`, with what an earlier run left in it.

    It stays where the block raises. Raises PartitionError where another process works in it, where
    the folder is not ours, or a disk refuses.
    """
    root = out.with_name(out.name + SUFFIX)
    check_goal(out, force)
    with writing(root):
        _check_ours(root)
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise PartitionError(
                    f"another process is working in {root}; wait for it, or give another -o"
                ) from error
        found = Workspace(root, out)
        with writing(root):
            (root / MARK).write_text(json.dumps({"kind": "edgevit-partition", "out": str(out)}))
            if (root / "old").is_dir() and not out.exists():
                (root / "old").rename(out)  # it was killed between the two renames
                check_goal(out, force)
            shutil.rmtree(found.folders.temporary, ignore_errors=True)
            for folder in (found.folders.steps, found.folders.logs, found.folders.temporary):
                folder.mkdir(exist_ok=True)
            for unfinished in found.folders.steps.glob(f"{UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(found.staged, ignore_errors=True)
        yield found
    finally:
        os.close(lock)


def check_goal(out: Path, force: bool) -> None:
    """Refuse a goal that is there, unless it is a plan that may be replaced."""
    if out.is_symlink() or out.exists():
        if not force:
            raise PartitionError(
                f"{out} exists already; give another folder, or --force to replace it"
            )
        if out.is_symlink() or not out.is_dir() or not _is_plan(out):
            raise PartitionError(
                f"{out} is no plan of edgevit (no {PLAN_NAME}); --force replaces plans only. Give "
                "another folder"
            )


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn the system's refusals inside the block into one clear error about `what`."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0) or error.strerror or str(error)
        raise PartitionError(f"cannot write {what}: {cure}") from error


def linked(source: Path, goal: Path) -> None:
    """A copy of a folder, by hard links where the file system has them; the original stays."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, goal, copy_function=link)


def _is_plan(folder: Path) -> bool:
    try:
        found = json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not any(folder.iterdir())
    return isinstance(found, dict) and found.get("kind") == "edgevit-plan"


def _check_ours(root: Path) -> None:
    if root.is_dir() and any(root.iterdir()) and not (root / MARK).is_file():
        raise PartitionError(
            f"{root} holds other things than an unfinished plan, and that is where it would be "
            "made; give another -o"
        )

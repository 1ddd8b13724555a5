"""OUT.partial, where a run works and is taken up again, and OUT, which appears whole.

    OUT.partial/  MARK   steps/   logs/   tmp/   STAGED/ (becomes OUT)   old/ (was OUT)

The folder is locked while a process works in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from converters.bundle_writer import CURES
from converters.interrupts import uninterrupted
from converters.jobs.local import Folders
from converters.jobs.steps import UNFINISHED, sync

SUFFIX = ".partial"


@dataclass(frozen=True)
class Goal:
    """What a run is to make. `what` is its name in a sentence, and of its folder while staged.

    mark is the file that tells the workspace as ours, with `maker` as its kind; name is the file in
    what was made, and kind the kind that it says. error is made of a message.
    """

    what: str
    maker: str
    mark: str
    name: str
    kind: str
    error: Callable[[str], Exception]


@dataclass(frozen=True)
class Workspace:
    """The folders of one run; out is what is to appear."""

    root: Path
    out: Path
    goal: Goal

    @property
    def folders(self) -> Folders:
        """Where jobs work."""
        return Folders(self.root / "steps", self.root / "logs", self.root / "tmp")

    @property
    def staged(self) -> Path:
        """What is made, while it is put together."""
        return self.root / self.goal.what

    def publish(self, force: bool) -> None:
        """Rename what is staged to its place, and take the workspace away.

        Raises the goal's error where something stands there; the work is kept.
        """
        check_goal(self.out, force, self.goal)
        with writing(self.out, self.goal):
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
def workspace(out: Path, force: bool, goal: Goal) -> Iterator[Workspace]:
    """The locked workspace beside `out`, with what an earlier run left in it.

    It stays where the block raises. Raises the goal's error where another process works in it,
    where the folder is not ours, or a disk refuses.
    """
    root = out.with_name(out.name + SUFFIX)
    check_goal(out, force, goal)
    with writing(root, goal):
        _check_ours(root, goal)
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise goal.error(
                    f"another process is working in {root}; wait for it, or give another -o"
                ) from error
        found = Workspace(root, out, goal)
        with writing(root, goal):
            (root / goal.mark).write_text(json.dumps({"kind": goal.maker, "out": str(out)}))
            if (root / "old").is_dir() and not out.exists():
                (root / "old").rename(out)  # it was killed between the two renames
                check_goal(out, force, goal)
            shutil.rmtree(found.folders.temporary, ignore_errors=True)
            for folder in (found.folders.steps, found.folders.logs, found.folders.temporary):
                folder.mkdir(exist_ok=True)
            for unfinished in found.folders.steps.glob(f"{UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(found.staged, ignore_errors=True)
        yield found
    finally:
        os.close(lock)


def check_goal(out: Path, force: bool, goal: Goal) -> None:
    """Refuse an `out` that is there, unless it is of the goal's kind and may be replaced."""
    if out.is_symlink() or out.exists():
        if not force:
            raise goal.error(f"{out} exists already; give another folder, or --force to replace it")
        if out.is_symlink() or not out.is_dir() or not _is_one(out, goal):
            raise goal.error(
                f"{out} is no {goal.what} of edgevit (no {goal.name}); --force replaces "
                f"{goal.what}s only. Give another folder"
            )


@contextlib.contextmanager
def writing(what: Path, goal: Goal) -> Iterator[None]:
    """Turn the system's refusals inside the block into one clear error about `what`."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0) or error.strerror or str(error)
        raise goal.error(f"cannot write {what}: {cure}") from error


def linked(source: Path, goal: Path) -> None:
    """A copy of a folder, by hard links where the file system has them; the original stays."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, goal, copy_function=link)


def _is_one(folder: Path, goal: Goal) -> bool:
    try:
        found = json.loads((folder / goal.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not any(folder.iterdir())
    return isinstance(found, dict) and found.get("kind") == goal.kind


def _check_ours(root: Path, goal: Goal) -> None:
    if root.is_dir() and any(root.iterdir()) and not (root / goal.mark).is_file():
        raise goal.error(
            f"{root} holds other things than an unfinished {goal.what}, and that is where it "
            "would be made; give another -o"
        )

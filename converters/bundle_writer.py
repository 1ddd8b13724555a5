"""Write a bundle whole or not at all: in a hidden folder beside the goal, renamed when it is done.

    PARENT/.edgevit-NAME-xxxxxxxx/  new/  the bundle being written
                                    old/  the bundle that --force replaces, while they swap

The hidden folder is locked while its process lives. One that is not was left by a process that was
killed or a machine that lost power: the next conversion to the same goal clears it away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converters.errors import ConvertError
from converters.interrupts import uninterrupted
from runtime.manifest import MANIFEST_NAME

PREFIX = ".edgevit-"
NEW, OLD = "new", "old"
RANDOM_LETTERS = 8  # of tempfile.mkdtemp
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
NO_ROOM = 64 * 1024
CURES = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "no room, a file would be larger than this process may write (ulimit -f)",
    errno.EROFS: "the file system is read-only; give another folder",
    errno.EACCES: "no permission; give another folder",
    errno.EPERM: "no permission; give another folder",
    errno.ENOTDIR: "a part of the path is a file; give another folder",
    errno.EEXIST: "a part of the path is a file; give another folder",
    errno.ENOTEMPTY: "another folder took the name meanwhile; give another one",
}


def check_goal(out: Path, force: bool) -> None:
    """Refuse a goal that is there already (unless `force`) or that is no bundle to replace."""
    with writing(f"the bundle {out}"):
        try:
            out.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if not force:
            raise ConvertError(
                f"{out} exists already; give another folder, or --force to replace it"
            )
        if out.is_symlink():
            raise ConvertError(
                f"{out} is a symbolic link; --force replaces bundles only. Give {out.resolve()}"
            )
        if not out.is_dir():
            raise ConvertError(f"{out} is not a folder; --force replaces bundles only")
        if any(out.iterdir()) and not _is_bundle(out):
            raise ConvertError(
                f"{out} holds other things than a bundle (no {MANIFEST_NAME} of edgevit); --force "
                "replaces bundles only. Give another folder"
            )


@contextlib.contextmanager
def staging(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write in; it becomes `out` when the block ends well, else it is taken away.

    Raises ConvertError for a goal that exists, a read-only place or a full disk.
    """
    absent: list[Path] = []
    hidden: Path | None = None
    try:
        with writing(f"the bundle {out}"):
            absent = [folder for folder in out.parents if not folder.exists()]
            if not absent:
                _clear_leftovers(out)
            check_goal(out, force)
            out.parent.mkdir(parents=True, exist_ok=True)
            hidden = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
            lock = _lock(hidden)
            folder = hidden / NEW
            folder.mkdir()
        try:
            yield folder
            check_goal(out, force)  # another conversion may have ended first
            with writing(f"the bundle {out}"), uninterrupted():
                _finish(folder)
                _swap(folder, out)
        finally:
            if lock is not None:
                os.close(lock)
    finally:
        with uninterrupted():
            if hidden is not None:
                shutil.rmtree(hidden, ignore_errors=True)
            for parent in absent:  # ours, if they are still empty
                with contextlib.suppress(OSError):
                    parent.rmdir()


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn the system's refusals inside the block into one clear error about `what`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(what, error.errno) from error


def cannot_write(what: str, number: int | None) -> ConvertError:
    """The one error for a place that takes no files; number is the system's errno."""
    cure = CURES.get(number or 0) or os.strerror(number or 0)
    return ConvertError(f"cannot write {what}: {cure}. Nothing was left behind")


def full_disk(error: BaseException, *folders: Path) -> tuple[int, Path] | None:
    """The errno and the folder, where an error came from a disk that takes no more; else None.

    Vendors' C++ writers lose the errno, so a disk without room counts too.
    """
    full = [f for f in folders if f.exists() and shutil.disk_usage(f).free < NO_ROOM]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return cause.errno, (full or folders)[0]
        cause = cause.__cause__ or cause.__context__
    return (errno.ENOSPC, full[0]) if full else None


def _is_bundle(folder: Path) -> bool:
    """Whether its manifest.json is ours: browsers' and phones' packages have one of that name."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "edgevit_version" in manifest


def _swap(folder: Path, out: Path) -> None:
    """Put `folder` in `out`'s place. What is there steps aside, and comes back if that fails."""
    old = folder.with_name(OLD)
    replaced = out.exists()
    if replaced:
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if replaced:
            old.rename(out)
        raise


def _prefix(out: Path) -> str:
    return f"{PREFIX}{out.name}-"


def _lock(hidden: Path) -> int | None:
    """Hold a lock on the folder until the descriptor is closed; None where someone else does."""
    descriptor = os.open(hidden, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _clear_leftovers(out: Path) -> None:
    """Take away what a killed conversion to this goal left; a bundle it had moved comes back."""
    prefix = _prefix(out)
    for hidden in list(out.parent.iterdir()):
        if not hidden.name.startswith(prefix) or len(hidden.name) != len(prefix) + RANDOM_LETTERS:
            continue
        with contextlib.suppress(OSError):
            lock = _lock(hidden)
            if lock is None:
                continue
            try:
                if (hidden / OLD).is_dir() and not out.exists():
                    (hidden / OLD).rename(out)
                shutil.rmtree(hidden, ignore_errors=True)
            finally:
                os.close(lock)


def _finish(folder: Path) -> None:
    """Equal permissions, since vendors give some files to their owner alone, and bytes to the disk.

    They go there before the name does: a power cut must not leave an empty file behind a name.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)  # a new folder's, so the umask is in it
    for path in folder.rglob("*"):
        if not path.is_file():
            path.chmod(mode)
            continue
        path.chmod(mode & 0o666)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

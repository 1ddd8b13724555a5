"""Write a bundle whole or not at all: a hidden folder beside the goal, renamed when it is done."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converters.errors import ConvertError

PREFIX = ".edgevit-"


def check_goal(out: Path, force: bool) -> None:
    """Refuse a goal that is there already (unless `force`) or that is no bundle to replace."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise ConvertError(f"{out} exists already; give another folder, or --force to replace it")
    if not out.is_dir() or out.is_symlink():
        raise ConvertError(f"{out} is not a folder; --force replaces bundles only")
    if any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise ConvertError(
            f"{out} holds other things than a bundle (no manifest.json); --force replaces bundles "
            "only. Give another folder"
        )


@contextlib.contextmanager
def staging(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write in; it becomes `out` when the block ends well, else it is taken away.

    Raises ConvertError for a goal that exists, a read-only place or a full disk.
    """
    check_goal(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{out.name}-", dir=out.parent))
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's folders are the owner's alone
        _flush(folder)
        _swap(folder, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def cannot_write(out: Path, error: OSError) -> ConvertError:
    """The one error for a place that takes no files."""
    cures = {
        errno.ENOSPC: "the disk is full; make room",
        errno.EDQUOT: "the disk quota is used up; make room",
        errno.EFBIG: "the file would be larger than allowed here",
        errno.EROFS: "the file system is read-only; give another folder",
        errno.EACCES: "no permission; give another folder",
        errno.EPERM: "no permission; give another folder",
        errno.ENOTDIR: "a part of the path is a file; give another folder",
    }
    cure = cures.get(error.errno or 0, error.strerror or str(error))
    return ConvertError(f"cannot write the bundle {out}: {cure}. Nothing was left behind")


def _swap(folder: Path, out: Path) -> None:
    """Put `folder` in `out`'s place. The old bundle goes last, and comes back if that fails."""
    if not out.exists():
        folder.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{out.name}-old-", dir=out.parent))
    out.rename(old / out.name)
    try:
        folder.rename(out)
    except OSError:
        (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bytes to the disk before the name: a power cut must not leave an empty file behind a name."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

"""File work of the store that survives a crash at any moment and follows no link."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from runtime.errors import RuntimeFault
from runtime.wire.refused import Refused, exhausted

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
NEW = ".new"
SCHEMA_VERSION = 1


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a Refused: RESOURCE_EXHAUSTED on a full disk, else INTERNAL."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise exhausted(
                f"the agent's disk is full at {what}; remove a bundle from it, or make room"
            ) from error
        raise Refused(
            grpc.StatusCode.INTERNAL, f"the agent's disk fails at {what}: {error.strerror}"
        ) from error


def told(error: Exception, folder: Path, name: str = "it") -> str:
    """The text of an error for a caller far away, who knows `folder` as `name`."""
    return str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), name)


def prepare_json(path: Path, value: dict[str, Any]) -> Path:
    """Write a JSON file beside `path`, on the disk when this returns; replace() puts it there."""
    new = path.with_name(path.name + NEW)
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump({"schema_version": SCHEMA_VERSION} | value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    return new


def replace(new: Path, path: Path) -> None:
    """Rename a prepared file over the old one; on the disk when this returns."""
    new.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file: at every moment the old or the new one is there."""
    replace(prepare_json(path, value), path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of write_json; None where there is none. Raises RuntimeFault where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RuntimeFault(
            f"cannot read {path}: {error}. Mend it, or remove it: the bundles stay"
        ) from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise RuntimeFault(
            f"{path}: expected schema_version {SCHEMA_VERSION}; it was written by another edgevit "
            "or is damaged. Upgrade, or remove it: the bundles stay"
        )
    return data


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    folder = os.open(path, FOLDER)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync_tree(path: Path) -> None:
    """Bring every file and folder below `path` to the disk, and itself."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            file = os.open(Path(folder) / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(Path(folder))


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, as far as the system lets."""
    shutil.rmtree(path, ignore_errors=True)


def sizes(folder: Path) -> dict[str, int] | None:
    """Bytes of every file below a folder by relative POSIX path; None where one is no plain file.

    A file that has a second name (a hard link) counts as none of ours.
    """
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent) / name
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not _plain(status):
                return None
            found[path.relative_to(folder).as_posix()] = status.st_size
    return found


def _plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def open_below(folder: int, path: str, new: bool) -> int:
    """A descriptor to write the file `path` below an open folder, never through a link.

    A new file must not be there yet, its folders are made; an old one must be there, and be a plain
    file that has no other name. Raises OSError.
    """
    *parents, name = path.split("/")
    inner = os.dup(folder)
    try:
        for part in parents:
            if new:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=inner)
            deeper = os.open(part, FOLDER, dir_fd=inner)
            os.close(inner)
            inner = deeper
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if new:
            return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=inner)
        file = os.open(name, flags, dir_fd=inner)
        if not _plain(os.fstat(file)):
            os.close(file)
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        return file
    finally:
        os.close(inner)


def write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; on a failure the file ends at `offset` again."""
    view, done = memoryview(data), 0
    try:
        while done < len(data):
            done += os.pwrite(file, view[done:], offset + done)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, offset)
        raise

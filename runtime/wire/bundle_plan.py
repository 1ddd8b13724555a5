"""A bundle as it travels: its files with their digests, and the messages that carry them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle import read_bundle
from runtime.digest import sha256_file, tree_digest
from runtime.errors import RuntimeFault
from runtime.wire.bundle_paths import check_paths
from runtime.wire.descriptors import Message, message

UPLOAD_REQUEST = "edgevit.v1.UploadRequest"

Sent = Callable[[int, int], None]
"""Bytes of the bundle that are over there, and bytes of the bundle."""


@dataclass(frozen=True)
class PlannedFile:
    """One file: its relative POSIX path, bytes, lower-case hex sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BundlePlan:
    """The files of a bundle in the order they travel, and the digest of the whole folder."""

    digest: str
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all the files."""
        return sum(file.size for file in self.files)

    def header(self, name: str = "") -> Message:
        """The UploadHeader; an empty name leaves the naming to the agent."""
        return message("edgevit.v1.UploadHeader")(
            name=name,
            digest=self.digest,
            files=[{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
        )


def plan_of(path: Path) -> BundlePlan:
    """Read and hash a bundle's folder. Raises RuntimeFault where it is none or holds a link."""
    read_bundle(path)
    files = scan(path)
    check_paths(file.path for file in files)
    return BundlePlan(digest_of(files), tuple(files))


def digest_of(files: list[PlannedFile]) -> str:
    """The digest of a folder that holds exactly these files, as sha256_tree gives it."""
    return tree_digest((file.path, file.sha256, file.size) for file in files)


def scan(folder: Path) -> list[PlannedFile]:
    """Every file below a folder, hashed, in the order of paths.

    Raises RuntimeFault on a link, a device or a pipe: a bundle holds plain files only.
    """
    return sorted(_scan(folder, ""), key=lambda file: file.path)


def chunks(
    plan: BundlePlan,
    path: Path,
    held: Mapping[str, int],
    size: int,
    name: str = "",
    progress: Sent | None = None,
) -> Iterator[Message]:
    """The UploadRequests of a bundle at `path`: its header, then what is not held over there.

    held maps a path to the bytes that the agent has of it, size is the bytes of a chunk; one chunk
    is in memory at a time. progress is called as each message is taken. Raises RuntimeFault where a
    file is no longer as planned.
    """
    request = message(UPLOAD_REQUEST)
    total, there = plan.size, sum(min(held.get(f.path, 0), f.size) for f in plan.files)
    tell = progress or (lambda sent, of: None)
    tell(there, total)
    yield request(header=plan.header(name))
    for number, file in enumerate(plan.files):
        offset = held.get(file.path, 0)
        for data in _pieces(path / file.path, offset, file.size, size):
            digest = hashlib.sha256(data).digest()
            yield request(chunk={"file": number, "offset": offset, "data": data, "sha256": digest})
            offset, there = offset + len(data), there + len(data)
            tell(there, total)


def _scan(folder: Path, prefix: str) -> Iterator[PlannedFile]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError as error:
        raise RuntimeFault(f"cannot read {folder}: {error.strerror}") from error
    for entry in entries:
        path, name = Path(entry.path), prefix + entry.name
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from _scan(path, name + "/")
        elif stat.S_ISREG(status.st_mode):
            yield PlannedFile(name, status.st_size, sha256_file(path))
        else:
            what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no plain file"
            raise RuntimeFault(
                f"{path} is {what}; a bundle holds plain files only, copy the file itself"
            )


def _pieces(path: Path, offset: int, end: int, size: int) -> Iterator[bytes]:
    """The bytes from offset to end, at most `size` at a time."""
    if offset >= end:
        return
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while offset < end:
                data = file.read(min(size, end - offset))
                if not data:
                    raise RuntimeFault(
                        f"{path} became shorter while it was sent; start again when it is whole"
                    )
                yield data
                offset += len(data)
    except OSError as error:
        raise RuntimeFault(f"cannot read {path}: {error.strerror}") from error

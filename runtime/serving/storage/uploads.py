"""One bundle on its way into the store: written chunk by chunk, checked, then made visible."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import grpc

from runtime.bundle import Bundle, check_bytes, read_bundle
from runtime.errors import RuntimeFault
from runtime.serving.storage.files import FOLDER, disk_errors, open_below, sync_tree, told, write_at
from runtime.serving.storage.header import Header
from runtime.wire.bundle_plan import scan
from runtime.wire.refused import Refused, invalid, precondition

TARGET = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # it becomes a part of a model's name
SHOWN = 4


@dataclass(frozen=True)
class Stored:
    """A bundle of the store that is whole; its names are sorted and may be none."""

    digest: str
    names: list[str]
    path: Path
    size: int
    bundle: Bundle


class Upload:
    """Made by Store.begin. Its calls are safe from any thread and each waits for the one before.

    complete says that the store has the bundle already: no chunk is taken then, finish() names it.
    held maps a path to its bytes on the disk; received are the bytes of this upload alone.
    """

    def __init__(
        self,
        header: Header,
        files: Path | None,
        held: dict[str, int],
        commit: Callable[[Header, Bundle | None], Stored],
        release: Callable[[Upload, bool], None],
    ) -> None:
        """`files` is the folder that the files go to, None where the bundle is there already.

        commit makes the checked bundle visible under its name; release is called once at the end,
        with whether what came is worth keeping.
        """
        self.header, self.files, self.held = header, files, held
        self.received = 0
        self._commit, self._release = commit, release
        self._lock = Lock()
        self._over = False
        self._folder = -1 if files is None else os.open(files, FOLDER)
        self._file, self._number = -1, -1

    @property
    def complete(self) -> bool:
        """Whether the store had the bundle before."""
        return self.files is None

    def write(self, file: int, offset: int, data: bytes, sha256: bytes) -> None:
        """Take a chunk: bytes of file number `file` of the header, from where it ends so far.

        Raises Refused: INVALID_ARGUMENT, FAILED_PRECONDITION for another offset, DATA_LOSS where
        sha256 (32 bytes) is not that of data, RESOURCE_EXHAUSTED on a full disk. The bytes that
        came before stay.
        """
        with self._lock:
            self._check_open()
            if self.complete:
                raise invalid("the bundle is in the store already; send no chunks")
            if file >= len(self.header.files):
                raise invalid(f"a chunk of file {file}, the header has {len(self.header.files)}")
            planned = self.header.files[file]
            end = self.held.get(planned.path, 0)
            if not data:
                raise invalid(f"an empty chunk of {planned.path}")
            if offset != end:
                raise precondition(
                    f"{planned.path}: expected the bytes from {end} on, got a chunk of offset "
                    f"{offset}; ask UploadStatus where to go on"
                )
            if end + len(data) > planned.size:
                raise invalid(
                    f"{planned.path}: the header says {planned.size} bytes, the chunks bring more"
                )
            if hashlib.sha256(data).digest() != sha256:
                raise Refused(
                    grpc.StatusCode.DATA_LOSS,
                    f"{planned.path}: the chunk at {offset} has another sha256 than it came with; "
                    "send it again",
                )
            with disk_errors(planned.path):
                self._open(file, planned.path)
                write_at(self._file, data, offset)
            self.held[planned.path] = end + len(data)
            self.received += len(data)

    def finish(self) -> Stored:
        """Check everything and make the bundle visible under its name.

        Raises Refused: FAILED_PRECONDITION where bytes are missing, DATA_LOSS where a file has
        another sha256 than the header says (that file begins anew), INVALID_ARGUMENT where the
        files are no sound bundle (all is dropped).
        """
        with self._lock:
            self._check_open()
            bundle = None if self.complete else self._whole()
            stored = self._commit(self.header, bundle)
            self._end(keep=False)
            return stored

    def suspend(self) -> None:
        """Stop here and keep what came for another upload; nothing where this one is over."""
        with self._lock:
            self._end(keep=True)

    def _check_open(self) -> None:
        if self._over:
            raise precondition("this upload is over; begin another, it goes on where this one was")

    def _open(self, number: int, path: str) -> None:
        """Have the file open to write to; one at a time is."""
        if number == self._number:
            return
        self._close_file()
        self._file = open_below(self._folder, path, new=path not in self.held)
        self.held.setdefault(path, 0)
        self._number = number

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number = -1, -1

    def _whole(self) -> Bundle:
        """The bundle, its files checked against header and manifest and brought to the disk."""
        assert self.files is not None
        with disk_errors("the end of the upload"):
            for number, file in enumerate(self.header.files):
                if file.size == 0:
                    self._open(number, file.path)
            self._close_file()
            missing = [f for f in self.header.files if self.held.get(f.path, 0) != f.size]
            if missing:
                file, more = missing[0], len(missing) - 1
                raise precondition(
                    f"the upload is not whole: {self.held.get(file.path, 0)} of {file.size} bytes "
                    f"of {file.path} came"
                    + (f", and {more} more files lack some" if more else "")
                    + "; send the rest"
                )
            self._check_files()
            sync_tree(self.files)
        try:
            return sound(self.files)
        except Refused:  # the same digest can only bring the same bytes
            self._end(keep=False)
            raise

    def _check_files(self) -> None:
        """Compare what lies on the disk with the header; a file that differs begins anew."""
        assert self.files is not None
        there, said = set(scan(self.files)), set(self.header.files)
        wrong = sorted({file.path for file in there ^ said})
        for path in wrong:
            (self.files / path).unlink(missing_ok=True)
            self.held.pop(path, None)
        if wrong:
            raise Refused(
                grpc.StatusCode.DATA_LOSS,
                f"other bytes came than the header says, of {', '.join(wrong[:SHOWN])}"
                + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
                + "; send them again",
            )

    def _end(self, keep: bool) -> None:
        if self._over:
            return
        self._over = True
        self._close_file()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
        self._release(self, keep)


def sound(folder: Path) -> Bundle:
    """The bundle in a folder. Raises Refused, INVALID_ARGUMENT, without the folder's own path."""
    try:
        bundle = read_bundle(folder)
        check_bytes(bundle)
        for target in bundle.manifest.artifacts:
            if not TARGET.fullmatch(target):
                raise RuntimeFault(f"the manifest has a target named {target[:40]!a}")
    except (RuntimeFault, OSError, ValueError, RecursionError) as error:
        raise invalid(f"this is not a sound bundle: {told(error, folder)}") from error
    return bundle

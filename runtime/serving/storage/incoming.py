"""The folder of uploads that are not whole yet: one folder a digest, with its header beside it.

    incoming/DIGEST/header.json   what was promised
    incoming/DIGEST/files/...     what came of it; renamed away when the bundle becomes visible

So a header without files, beside a bundle of that digest, is an upload that a crash stopped between
the bundle and its name.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import RuntimeFault
from runtime.serving.storage.files import disk_errors, read_json, remove_tree, sizes, write_json
from runtime.serving.storage.header import Header, header_from_json
from runtime.wire.refused import exhausted

HEADER, FILES = "header.json", "files"
KEEP_S = 7 * 24 * 3600.0
KEEP_COUNT = 16
SPARE_BYTES = 1 << 20  # of the disk, for the store's own small files


@dataclass
class Partial:
    """An upload that began: bytes held of each file, and when it last began (unix seconds).

    An active upload goes on filling `held`, from another thread.
    """

    header: Header
    held: dict[str, int]
    begun: float
    active: bool = False

    @property
    def bytes(self) -> int:
        """Bytes on the disk."""
        return sum(list(self.held.values()))

    @property
    def claim(self) -> int:
        """Bytes that it may come to have: all it promised while it runs, else what it has."""
        return self.header.size if self.active else self.bytes


class Incoming:
    """Changed by one thread at a time: the store's lock guards that. held and used from any."""

    def __init__(self, folder: Path) -> None:
        """Read what is left from before; what is damaged or old is dropped.

        unnamed holds the headers whose bundle became visible without its name.
        """
        self.folder = folder
        self.partials: dict[str, Partial] = {}
        self.unnamed: list[Header] = []
        for path in sorted(folder.iterdir()):
            self._read(path)
        self._keep_newest(KEEP_COUNT)

    def files_of(self, digest: str) -> Path:
        """Where the files of an upload lie."""
        return self.folder / digest / FILES

    def held(self, digest: str) -> dict[str, int]:
        """Bytes of each file that came so far."""
        partial = self.partials.get(digest)
        return dict(partial.held) if partial else {}

    def used(self) -> int:
        """Bytes of all of them on the disk."""
        return sum(partial.bytes for partial in list(self.partials.values()))

    def lacks(self, header: Header, bundles: int, quota: int | None, spare: int = 0) -> str | None:
        """Why an upload cannot begin, None where it can.

        `bundles` are the bytes of the bundles in the store, of which `spare` could go.
        """
        held = sum((self._resumable(header) or {}).values())
        others = {d: p for d, p in self.partials.items() if d != header.digest}
        idle = sum(p.bytes for p in others.values() if not p.active)
        return self._lacks(header, held, bundles, quota, others, idle + spare)

    def begin(self, header: Header, bundles: int, quota: int | None) -> dict[str, int]:
        """Make or find the folder of an upload; the bytes held of each file, for it to go on with.

        Partial uploads of others make room, the oldest first. Raises Refused, RESOURCE_EXHAUSTED,
        where that is not enough.
        """
        here = self.folder / header.digest
        held = self._resumable(header)
        if held is None:
            self.drop(header.digest)
            held = {}
        self._make_room(header, sum(held.values()), bundles, quota)
        with disk_errors("the header of an upload"):
            here.mkdir(0o700, exist_ok=True)
            write_json(here / HEADER, header.to_json())
            (here / FILES).mkdir(0o700, exist_ok=True)
        self.partials[header.digest] = Partial(header, held, time.time(), True)
        self._keep_newest(KEEP_COUNT)
        return held

    def leave(self, digest: str) -> None:
        """The upload stopped; what came stays."""
        self.partials[digest].active = False

    def drop(self, digest: str) -> None:
        """Remove what came of an upload."""
        self.partials.pop(digest, None)
        remove_tree(self.folder / digest)

    def trim(self, most: int) -> None:
        """Drop the oldest until the rest has at most `most` bytes."""
        while self.used() > most and self._drop_oldest():
            pass

    def _read(self, path: Path) -> None:
        digest = path.name
        try:
            data = read_json(path / HEADER)
            header = header_from_json(data) if data else None
        except (RuntimeFault, KeyError, TypeError, ValueError):
            header = None
        if header is None or header.digest != digest:
            remove_tree(path)
            return
        if not (path / FILES).is_dir():
            self.unnamed.append(header)
            return
        begun = (path / HEADER).stat().st_mtime
        found = sizes(path / FILES)
        if found is None or time.time() - begun > KEEP_S:
            remove_tree(path)
            return
        self.partials[digest] = Partial(header, found, begun)

    def _resumable(self, header: Header) -> dict[str, int] | None:
        """Bytes held of each file; None where they cannot be of this header."""
        partial = self.partials.get(header.digest)
        if partial is None or set(partial.header.files) != set(header.files):
            return None
        held = sizes(self.files_of(header.digest))
        planned = {file.path: file.size for file in header.files}
        if held is None or any(size > planned.get(path, -1) for path, size in held.items()):
            return None
        return held

    def _make_room(self, header: Header, held: int, bundles: int, quota: int | None) -> None:
        others = {d: p for d, p in self.partials.items() if d != header.digest}
        if problem := self.lacks(header, bundles, quota):
            raise exhausted(problem)
        while self._lacks(header, held, bundles, quota, others, 0):
            oldest = self._oldest(header.digest)
            if oldest is None:  # they are gone and the disk did not get emptier
                raise exhausted("the agent's disk is full; make room on it")
            del others[oldest]
            self.drop(oldest)

    def _lacks(
        self,
        header: Header,
        held: int,
        bundles: int,
        quota: int | None,
        others: dict[str, Partial],
        spare: int,
    ) -> str | None:
        """Why there is no room, were `spare` bytes of partial uploads gone; None where there is."""
        taken = bundles + sum(p.claim for p in others.values()) - spare
        if quota is not None and taken + header.size > quota:
            return (
                f"the store may have {quota} bytes and has {taken}, the bundle needs "
                f"{header.size}; remove a bundle, or give the agent a larger quota"
            )
        coming = sum(p.claim - p.bytes for p in others.values())
        free = shutil.disk_usage(self.folder).free - coming - SPARE_BYTES + spare
        if header.size - held > free:
            return (
                f"the agent's disk has {max(free, 0)} bytes left, the rest of the bundle needs "
                f"{header.size - held}; remove a bundle, or make room"
            )
        return None

    def _keep_newest(self, count: int) -> None:
        while len(self.partials) > count and self._drop_oldest():
            pass

    def _drop_oldest(self) -> bool:
        oldest = self._oldest()
        if oldest is not None:
            self.drop(oldest)
        return oldest is not None

    def _oldest(self, besides: str = "") -> str | None:
        """The digest of the upload that began first, of those that nobody goes on with."""
        idle = [(p.begun, d) for d, p in self.partials.items() if not p.active and d != besides]
        return min(idle)[1] if idle else None

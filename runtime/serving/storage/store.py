"""The bundles on a device's disk, under their names; safe against a crash at any moment.

    STORE/  lock  device.json  names.json  models.json  bundles/DIGEST/  incoming/DIGEST/  trash/

A bundle becomes visible by one rename of its checked folder into bundles/, and is gone by one
rename into trash/; a small file changes by one rename of the new one over the old. open() finishes
or drops what a crash left between two of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import grpc

from runtime.bundle import Bundle
from runtime.digest import sha256_tree
from runtime.errors import RuntimeFault
from runtime.serving.limits import MIB, Limits
from runtime.serving.storage.files import disk_errors, prepare_json, read_json, replace, write_json
from runtime.serving.storage.header import Header, header_of
from runtime.serving.storage.incoming import Incoming
from runtime.serving.storage.lock import StoreLock
from runtime.serving.storage.names import NAME, check_digest, default_name, unknown
from runtime.serving.storage.shelf import Shelf
from runtime.serving.storage.uploads import Stored, Upload
from runtime.wire.bundle_plan import chunks, plan_of
from runtime.wire.descriptors import Message
from runtime.wire.refused import Refused, exhausted, not_found, precondition, unavailable

LOCK, DEVICE, NAMES, MODELS = "lock", "device.json", "names.json", "models.json"
BUNDLES, INCOMING, TRASH = "bundles", "incoming", "trash"
MODEL_SETTINGS = ("threads", "instances")


class Store:
    """Open it with Store.open. Safe from any thread; what waits for the disk belongs in one.

    begin, add, remove, remember, forget and close wait for the disk and for each other; the rest
    answers from memory at once. in_use says whether the files of a digest are needed: a bundle that
    has lost its last name to a newer one stays while they are, and until room is needed.
    """

    def __init__(
        self, root: Path, lock: StoreLock, quota_bytes: int | None, limits: Limits
    ) -> None:
        """Of open() alone."""
        self.root, self._file_lock = root, lock
        self._quota, self._limits = quota_bytes, limits
        self._lock = RLock()  # held by who changes something; what is read is replaced whole
        self._active: dict[str, Upload] = {}
        self._suspects: set[str] = set()
        self._closed = False
        self.in_use: Callable[[str], bool] = lambda digest: False
        for folder in (BUNDLES, INCOMING, TRASH):
            (root / folder).mkdir(0o700, exist_ok=True)
        self._shelf = Shelf(root / BUNDLES, root / TRASH)
        self._names = self._read_names()
        self._incoming = Incoming(root / INCOMING)
        self._name_the_unnamed()
        self._models = _models(read_json(root / MODELS) or {}, self._names)
        if quota_bytes is not None:
            self._incoming.trim(max(quota_bytes - self._shelf.bytes(), 0))
        device = read_json(root / DEVICE) or {}
        self.device_id: str = str(device.get("device_id") or uuid.uuid4())
        self.generation: int = int(device.get("generation", 0)) + 1
        self._sign()

    @classmethod
    def open(
        cls, root: Path, quota_bytes: int | None = None, limits: Limits | None = None
    ) -> Store:
        """Make or find the store at `root` and hold it until close().

        quota_bytes bounds what its bundles and uploads may take together, None leaves it to the
        disk. Raises RuntimeFault: another agent has it, or the folder is something else.
        """
        try:
            root.mkdir(0o700, parents=True, exist_ok=True)
            root = root.resolve()
            foreign = [p.name for p in root.iterdir() if not _ours(p.name)]
        except OSError as error:
            raise RuntimeFault(f"cannot keep a store in {root}: {error.strerror}") from error
        if foreign and not (root / DEVICE).exists():
            raise RuntimeFault(
                f"expected a store or an empty folder: {root} holds {', '.join(foreign[:3])}; "
                "give --store a folder of its own"
            )
        lock = StoreLock(root / LOCK)
        try:
            return cls(root, lock, quota_bytes, limits or Limits())
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError | ValueError | TypeError | AttributeError):
                raise RuntimeFault(f"cannot open the store {root}: {error}") from error
            raise

    def bundles(self) -> list[Stored]:
        """The bundles that can be served, in the order of their digests."""
        names = self._names
        return [_stored(d, held, names) for d, held in sorted(self._shelf.bundles.items())]

    def damaged(self) -> dict[str, tuple[list[str], str]]:
        """Names of each bundle that cannot be served, and why, by digest."""
        names, damaged = self._names, self._shelf.damaged
        return {digest: (_names_of(digest, names), why) for digest, (why, _) in damaged.items()}

    def find(self, name_or_digest: str) -> Stored:
        """A bundle. Raises Refused: NOT_FOUND with the nearest name, DATA_LOSS if it is damaged."""
        names = self._names
        digest = names.get(name_or_digest, name_or_digest)
        held, why = self._shelf.bundles.get(digest), self._shelf.damaged.get(digest)
        if held is not None:
            return _stored(digest, held, names)
        if why is not None:
            raise Refused(
                grpc.StatusCode.DATA_LOSS,
                f"the bundle '{name_or_digest}' is damaged: {why[0]}; upload it again",
            )
        raise not_found(unknown(name_or_digest, names))

    def add(self, path: Path, name: str | None = None) -> Stored:
        """Copy a local bundle in, as an upload would. Raises RuntimeFault, Refused.

        One that is there is read again: its bytes may have changed on the disk.
        """
        plan = plan_of(path)
        held = self.whole(plan.digest)
        if held is not None and not _has_digest(held.path, plan.digest):
            self.suspect(plan.digest)
        upload = self.begin(plan.header(name or ""))
        try:
            if not upload.complete:
                for request in chunks(plan, path, upload.held, MIB):
                    if request.HasField("chunk"):
                        part = request.chunk
                        upload.write(part.file, part.offset, part.data, part.sha256)
            return upload.finish()
        finally:
            upload.suspend()

    def suspect(self, digest: str) -> None:
        """Tell that a bundle has other bytes than it came with; the next upload brings it anew.

        Until then what is sound of it can be found.
        """
        self._suspects.add(digest)

    def whole(self, digest: str) -> Stored | None:
        """The bundle of a digest; None where it is not there, or suspected of other bytes."""
        held = self._shelf.bundles.get(digest)
        if held is None or digest in self._suspects:
            return None
        return _stored(digest, held, self._names)

    def remove(self, name_or_digest: str) -> tuple[str, int]:
        """Remove a name, and its bundle with the last; or a bundle with all its names.

        Gives the digest and the bytes freed. What was remembered of models by these names is
        forgotten. Raises Refused: NOT_FOUND, FAILED_PRECONDITION for files that are in use.
        """
        with self._lock, disk_errors("removing a bundle"):
            self._check_open()
            digest = self._names.get(name_or_digest, name_or_digest)
            if digest not in self._shelf:
                raise not_found(unknown(name_or_digest, self._names))
            names = _names_of(digest, self._names)
            gone = [name_or_digest] if name_or_digest in names else names
            freed = 0
            if gone == names:
                if self.in_use(digest):
                    raise precondition(f"the bundle '{name_or_digest}' is in use; unload it first")
                freed = self._bury(digest)  # first: a full disk takes the names after this
            self._names = {n: d for n, d in self._names.items() if n not in gone}
            write_json(self.root / NAMES, {"names": self._names})
            kept = {m: s for m, s in self._models.items() if m.split("/")[0] not in gone}
            self._remember(kept)
            return digest, freed

    def remembered(self) -> dict[str, dict[str, int]]:
        """Settings of each model that was loaded, by its name."""
        return {model: dict(settings) for model, settings in self._models.items()}

    def remember(self, model: str, settings: Mapping[str, int]) -> None:
        """Keep that a model (NAME or NAME/TARGET) is loaded, with threads and instances."""
        with self._lock, disk_errors("remembering a model"):
            self._check_open()
            kept = {key: int(settings[key]) for key in MODEL_SETTINGS if key in settings}
            self._remember(self._models | {model: kept})

    def forget(self, model: str) -> None:
        """No longer remember a model."""
        with self._lock, disk_errors("forgetting a model"):
            self._check_open()
            self._remember({m: s for m, s in self._models.items() if m != model})

    def used(self) -> int:
        """Bytes of all bundles and of what came of uploads."""
        return self._shelf.bytes() + self._incoming.used()

    def held(self, digest: str) -> dict[str, int]:
        """Bytes of each file that came of an upload so far. Raises Refused for no digest."""
        return self._incoming.held(check_digest(digest))

    def begin(self, header: Message) -> Upload:
        """Start or go on with the upload of an UploadHeader.

        Raises Refused: INVALID_ARGUMENT for a header that can never be right, RESOURCE_EXHAUSTED
        beyond a limit, the quota or the disk, ABORTED while another upload brings the same bundle,
        UNAVAILABLE after close().
        """
        checked = header_of(header, self._limits)
        digest = checked.digest
        with self._lock:
            self._check_open()
            if self.whole(digest) is not None:
                return Upload(checked, None, {}, self._commit, lambda upload, keep: None)
            if digest in self._active:
                raise Refused(
                    grpc.StatusCode.ABORTED,
                    f"another upload brings the bundle {digest[:12]} at this moment; try again "
                    "when it is over",
                )
            if digest in self._shelf and not self.in_use(digest):  # else it stays until the commit
                with disk_errors("removing a damaged bundle"):
                    self._bury(digest)
            self._make_room(checked)
            held = self._incoming.begin(checked, self._shelf.bytes(), self._quota)
            files = self._incoming.files_of(digest)
            try:
                with disk_errors("the beginning of an upload"):
                    upload = Upload(checked, files, held, self._commit, self._release)
            except Refused:
                self._incoming.leave(digest)
                raise
            self._active[digest] = upload
            return upload

    def close(self) -> None:
        """End the uploads, keeping what came, and let the next agent have the store.

        A thread that still wants to change something is refused from here on.
        """
        with self._lock:
            self._closed = True
            active = list(self._active.values())
        for upload in active:
            upload.suspend()
        self._file_lock.release()

    def _make_room(self, header: Header) -> None:
        """Bury bundles without a name, where an upload can begin with their room and not without.

        Raises Refused, RESOURCE_EXHAUSTED, where even all of it is not enough; nothing goes then.
        """
        named = set(self._names.values())
        spare = {
            digest: size
            for digest, (_, size) in self._shelf.bundles.items()
            if digest not in named and not self.in_use(digest)
        }
        lacks, quota = self._incoming.lacks, self._quota
        if problem := lacks(header, self._shelf.bytes(), quota, sum(spare.values())):
            raise exhausted(problem)
        for digest in spare:
            if lacks(header, self._shelf.bytes(), quota) is None:
                return
            with disk_errors("removing a bundle without a name"):
                self._bury(digest)

    def _bury(self, digest: str) -> int:
        self._suspects.discard(digest)
        return self._shelf.bury(digest)

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("the agent is ending")

    def _commit(self, header: Header, bundle: Bundle | None) -> Stored:
        """Make a checked bundle visible under its name, or give one that is visible the name.

        Whether the names fit on the disk is known before the bundle moves.
        """
        with self._lock, disk_errors("the end of the upload"):
            self._check_open()
            known = bundle or self.find(header.digest).bundle  # it may be gone since the begin
            name = header.name or default_name(known.manifest.model.ref)
            names = self._names | {name: header.digest}
            new = prepare_json(self.root / NAMES, {"names": names})
            if bundle is not None:
                if header.digest in self._shelf:  # with other bytes
                    self._bury(header.digest)
                self._shelf.put(header.digest, bundle, header.size)
            replace(new, self.root / NAMES)
            self._names = names
            return self.find(header.digest)

    def _release(self, upload: Upload, keep: bool) -> None:
        digest = upload.header.digest
        with self._lock:
            self._active.pop(digest, None)
            if keep and (digest not in self._shelf or digest in self._suspects):
                self._incoming.leave(digest)
            else:
                self._incoming.drop(digest)

    def _read_names(self) -> dict[str, str]:
        """The names whose bundle is there: a crash can leave one of a bundle that was removed."""
        found = (read_json(self.root / NAMES) or {}).get("names", {})
        there = self._shelf.bundles.keys() | self._shelf.damaged.keys()
        return {n: d for n, d in found.items() if NAME.fullmatch(n) and d in there}

    def _name_the_unnamed(self) -> None:
        """Finish the uploads that a crash stopped between the bundle and its name."""
        for header in self._incoming.unnamed:
            if header.digest in self._shelf.bundles:
                manifest = self._shelf.bundles[header.digest][0].manifest
                self._names[header.name or default_name(manifest.model.ref)] = header.digest
                write_json(self.root / NAMES, {"names": self._names})
            self._incoming.drop(header.digest)

    def _remember(self, models: dict[str, dict[str, int]]) -> None:
        if models != self._models:
            write_json(self.root / MODELS, {"models": models})
            self._models = models

    def _sign(self) -> None:
        """Write who this store is; a full disk gives up partial uploads for it."""
        who = {"device_id": self.device_id, "generation": self.generation}
        try:
            write_json(self.root / DEVICE, who)
        except OSError:
            self._incoming.trim(0)
            write_json(self.root / DEVICE, who)


def _ours(name: str) -> bool:
    """Whether an entry may lie in a folder that is to become a store."""
    return name in (LOCK, BUNDLES, INCOMING, TRASH, "lost+found") or name.startswith((".", DEVICE))


def _stored(digest: str, held: tuple[Bundle, int], names: Mapping[str, str]) -> Stored:
    bundle, size = held
    return Stored(digest, _names_of(digest, names), bundle.path, size, bundle)


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return sha256_tree(path) == digest
    except (RuntimeFault, OSError):
        return False


def _names_of(digest: str, names: Mapping[str, str]) -> list[str]:
    return sorted(name for name, d in names.items() if d == digest)


def _models(data: dict[str, Any], names: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The remembered models whose bundle is there: a crash can leave those of one removed."""
    return {
        model: {key: int(settings[key]) for key in MODEL_SETTINGS if key in settings}
        for model, settings in data.get("models", {}).items()
        if model.split("/")[0] in names
    }

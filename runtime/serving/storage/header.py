"""What an upload says it will bring, checked before a byte of it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.manifest import LABELS_NAME, MANIFEST_NAME
from runtime.serving.limits import MIB, Limits
from runtime.serving.storage.names import DIGEST, check_digest, check_name
from runtime.wire.bundle_paths import check_paths
from runtime.wire.bundle_plan import PlannedFile, digest_of
from runtime.wire.descriptors import Message
from runtime.wire.refused import exhausted, invalid

MANIFEST_BYTES, LABELS_BYTES = 16 * MIB, 4 * MIB  # they are read whole


@dataclass(frozen=True)
class Header:
    """The name (empty: by the model), digest and files of a bundle on its way."""

    name: str
    digest: str
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all the files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """As it lies beside a partial upload."""
        files = [[file.path, file.size, file.sha256] for file in self.files]
        return {"name": self.name, "digest": self.digest, "files": files}


def header_of(message: Message, limits: Limits) -> Header:
    """The checked content of an UploadHeader. Raises Refused."""
    if message.name:
        check_name(message.name)
    check_digest(message.digest)
    if len(message.files) > limits.bundle_files:
        raise exhausted(
            f"the bundle has {len(message.files)} files, this agent takes {limits.bundle_files}"
        )
    files = tuple(PlannedFile(f.path, f.size, f.sha256) for f in message.files)
    check_paths(file.path for file in files)
    header = Header(message.name, message.digest, files)
    for file in files:
        if not DIGEST.fullmatch(file.sha256):
            raise invalid(f"{file.path}: expected a sha256 of 64 lower-case hex digits")
    if header.size > limits.bundle_bytes:
        raise exhausted(
            f"the bundle has {header.size} bytes, this agent takes {limits.bundle_bytes}"
        )
    if not any(file.path == MANIFEST_NAME for file in files):
        raise invalid(f"no {MANIFEST_NAME} among the files: this is not a bundle")
    for name, most in ((MANIFEST_NAME, MANIFEST_BYTES), (LABELS_NAME, LABELS_BYTES)):
        size = next((file.size for file in files if file.path == name), 0)
        if size > most:
            raise exhausted(f"{name} has {size} bytes, this agent takes {most}")
    own = digest_of(list(files))
    if own != header.digest:
        raise invalid(
            f"the header says digest {header.digest[:12]}..., its files give {own[:12]}...; "
            "make the digest as runtime/digest.py says"
        )
    return header


def header_from_json(data: dict[str, Any]) -> Header:
    """The header beside a partial upload. Raises KeyError, TypeError or ValueError if damaged."""
    files = tuple(PlannedFile(str(p), int(s), str(d)) for p, s, d in data["files"])
    return Header(str(data["name"]), str(data["digest"]), files)

"""Digests and sizes of artefacts, which are files or (Core ML) folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from runtime.errors import RuntimeFault


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, lower-case hex. Raises RuntimeFault where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RuntimeFault(f"cannot read {path}: {error.strerror}") from error


def sha256_tree(path: Path) -> str:
    """sha256 over a folder, see tree_digest; empty folders do not count.

    Raises RuntimeFault on a symbolic link.
    """
    return tree_digest(
        (file.relative_to(path).as_posix(), sha256_file(file), file.stat().st_size)
        for file in _files(path)
    )


def tree_digest(files: Iterable[tuple[str, str, int]]) -> str:
    """sha256 over (path, sha256, size) of files: a line `path NUL sha256 NUL size` for each.

    Paths are relative and POSIX and the lines in their order, so the digest is the same on every
    system.
    """
    total = hashlib.sha256()
    for name, sha256, size in sorted(files):
        total.update(f"{name}\0{sha256}\0{size}\n".encode())
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 of a file or folder."""
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files of a folder. Raises RuntimeFault on a symbolic link."""
    return sum(f.stat().st_size for f in _files(path)) if path.is_dir() else path.stat().st_size


def _files(folder: Path) -> list[Path]:
    found = []
    for entry in folder.rglob("*"):
        if entry.is_symlink():
            raise RuntimeFault(f"{entry} is a symbolic link; an artefact holds plain files only")
        if entry.is_file():
            found.append(entry)
    return sorted(found, key=lambda f: f.relative_to(folder).as_posix())

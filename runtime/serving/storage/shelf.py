"""The folder of visible bundles, one a digest, and the trash that they leave through."""

from __future__ import annotations

import uuid
from pathlib import Path

from runtime.bundle import Bundle, read_bundle
from runtime.digest import size_of
from runtime.errors import RuntimeFault
from runtime.serving.storage.files import remove_tree, sync_folder, told
from runtime.serving.storage.names import DIGEST


class Shelf:
    """Changed by one thread at a time: the store's lock guards that. Read by any.

    bundles maps a digest to the bundle and its bytes, damaged to what is wrong with it and its
    bytes. A change makes a new dict, so that who reads needs no lock.
    """

    def __init__(self, folder: Path, trash: Path) -> None:
        """Read what is there; what a crash left in the trash goes."""
        self._folder, self._trash = folder, trash
        self.bundles: dict[str, tuple[Bundle, int]] = {}
        self.damaged: dict[str, tuple[str, int]] = {}
        for left in trash.iterdir():
            remove_tree(left)
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                self._read(path)

    def __contains__(self, digest: str) -> bool:
        """Whether a bundle is there, damaged or not."""
        return digest in self.bundles or digest in self.damaged

    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(size for _, size in [*self.bundles.values(), *self.damaged.values()])

    def put(self, digest: str, bundle: Bundle, size: int) -> None:
        """Take a checked bundle from where it lies. One rename; raises OSError."""
        path = self._folder / digest
        bundle.path.rename(path)
        self.bundles = self.bundles | {digest: (Bundle(path, bundle.manifest), size)}
        sync_folder(self._folder)
        sync_folder(bundle.path.parent)

    def bury(self, digest: str) -> int:
        """Remove a bundle: one rename, then its files. Gives its bytes; raises OSError."""
        grave = self._trash / f"{digest}-{uuid.uuid4().hex}"
        (self._folder / digest).rename(grave)
        size = (self.bundles.get(digest) or self.damaged[digest])[1]
        self.bundles = {d: held for d, held in self.bundles.items() if d != digest}
        self.damaged = {d: held for d, held in self.damaged.items() if d != digest}
        sync_folder(self._folder)
        remove_tree(grave)
        return size

    def _read(self, path: Path) -> None:
        """Take up a bundle of an earlier run; its bytes are hashed when it is loaded."""
        try:
            if not DIGEST.fullmatch(path.name):
                raise RuntimeFault("its folder is not named by a digest")
            bundle = read_bundle(path)
            for target, artifact in bundle.manifest.artifacts.items():
                file = bundle.artifact_path(target)
                if not file.exists() or size_of(file) != artifact.size_bytes:
                    raise RuntimeFault(f"{artifact.file} has not the size that the manifest says")
            self.bundles[path.name] = bundle, size_of(path)
        except (RuntimeFault, OSError, ValueError, RecursionError) as error:
            self.damaged[path.name] = told(error, path), _bytes_of(path)


def _bytes_of(path: Path) -> int:
    """Bytes of a damaged bundle, as far as they can be counted."""
    try:
        return size_of(path)
    except (RuntimeFault, OSError):
        return 0

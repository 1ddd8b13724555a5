"""Read a bundle: the folder of one converted model, as runtime/manifest.py describes it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError

from runtime.digest import sha256_of, size_of
from runtime.errors import CheckFailed, RuntimeFault
from runtime.manifest import MANIFEST_NAME, SCHEMA_VERSION, Artifact, Manifest
from runtime.sessions.base import Array


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; its artefacts were not opened."""

    path: Path
    manifest: Manifest

    def artifact(self, target: str) -> Artifact:
        """The artefact of a target. Raises RuntimeFault naming the targets there are."""
        artifact = self.manifest.artifacts.get(target)
        if artifact is None:
            known = sorted(self.manifest.artifacts)
            near = get_close_matches(target, known, n=1)
            failed = self.manifest.failures.get(target)
            raise RuntimeFault(
                f"{self.path} has no target '{target}', it has: {', '.join(known) or 'none'}"
                + (f". Did you mean '{near[0]}'?" if near else "")
                + (f". Its conversion failed at {failed.stage}: {failed.error}" if failed else "")
            )
        return artifact

    def artifact_path(self, target: str) -> Path:
        """Where an artefact lies. Raises RuntimeFault where its name leaves the bundle."""
        return self._inside(self.artifact(target).file)

    def reference_path(self) -> Path:
        """Where reference.npz lies. Raises RuntimeFault where its name leaves the bundle."""
        return self._inside(self.manifest.reference)

    def _inside(self, name: str) -> Path:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts:
            raise RuntimeFault(
                f"{self.path / MANIFEST_NAME} names '{name}', which is not a path inside the "
                "bundle; do not trust this bundle"
            )
        path = self.path
        for part in relative.parts:
            path = path / part
            if path.is_symlink():
                raise RuntimeFault(
                    f"{path} is a symbolic link; a bundle holds plain files only, copy the file"
                )
        return path


def read_bundle(path: Path) -> Bundle:
    """Read the manifest of a bundle. Raises RuntimeFault saying what is wrong with the folder."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise RuntimeFault(
            f"expected a bundle (the folder `edgevit convert` writes): {path} {what}"
        )
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise RuntimeFault(
            f"{path} has no {MANIFEST_NAME}: it is not a bundle, or was only half copied"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RuntimeFault(f"{file} is not JSON ({error}); copy or convert it again") from error
    check_version(data, file, SCHEMA_VERSION)
    try:
        return Bundle(path, Manifest.model_validate(data))
    except ValidationError as error:
        raise RuntimeFault(f"{file}: {first_problem(error)}; convert again") from error


def bundle_of(path: Path) -> tuple[Bundle, str] | None:
    """The bundle that an artefact file lies in and its target there, None where it lies in none."""
    try:
        bundle = read_bundle(path.parent)
    except RuntimeFault:  # beside a file there may be no manifest, or one of another tool
        return None
    targets = [t for t, artifact in bundle.manifest.artifacts.items() if artifact.file == path.name]
    return (bundle, targets[0]) if targets else None


def check_version(data: Any, file: Path | str, known: int) -> None:
    """Raise RuntimeFault where a JSON file is of another schema version than `known`."""
    if not isinstance(data, dict):
        raise RuntimeFault(f"{file}: expected a JSON object, got {type(data).__name__}")
    version = data.get("schema_version")
    if version == known:
        return
    if isinstance(version, int) and version > known:
        raise RuntimeFault(
            f"{file} has schema_version {version}, this edgevit reads {known}: "
            "it was made by a newer edgevit, upgrade with pip install -U edgevit"
        )
    raise RuntimeFault(f"{file}: expected schema_version {known}, got {version!r}")


def first_problem(error: ValidationError) -> str:
    """The first bad field of a schema error, and how many more there are."""
    problems = error.errors()
    where = ".".join(str(part) for part in problems[0]["loc"]) or "the file"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"field '{where}': {problems[0]['msg']}{more}"


def check_bytes(bundle: Bundle, targets: list[str] | None = None) -> None:
    """Compare sizes and digests with the manifest: the reference and the artefacts of `targets`.

    Raises CheckFailed at the first file that is gone or has other bytes.
    """
    manifest = bundle.manifest
    _check_file(bundle.reference_path(), manifest.reference_sha256)
    for target in targets if targets is not None else sorted(manifest.artifacts):
        artifact = bundle.artifact(target)
        _check_file(bundle.artifact_path(target), artifact.sha256, artifact.size_bytes)


def _check_file(path: Path, sha256: str, size: int | None = None) -> None:
    mend = "convert again or fetch it anew"
    if not path.exists():
        raise CheckFailed(f"{path} is named by the manifest but is not there; {mend}")
    got_size = size_of(path)
    if size is not None and got_size != size:
        raise CheckFailed(
            f"{path}: expected {size} bytes, got {got_size}: the file changed since it was made; "
            + mend
        )
    got = sha256_of(path)
    if got != sha256:
        raise CheckFailed(
            f"{path}: expected sha256 {sha256[:12]}..., got {got[:12]}...: the file changed since "
            f"it was made; {mend}"
        )


def read_reference(bundle: Bundle) -> tuple[Array, Array]:
    """inputs (N,H,W,3) and outputs (N,classes) float32 of reference.npz.

    The inputs are float32 in [0,1], or uint8 where preprocessing.input_dtype says so. Raises
    RuntimeFault where the file or an array is not as the manifest describes it.
    """
    path = bundle.reference_path()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, outputs = arrays["inputs"], arrays["outputs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RuntimeFault(
            f"{path}: expected an .npz with the arrays 'inputs' and 'outputs': {error}"
        ) from error
    pre, classes = bundle.manifest.preprocessing, bundle.manifest.classes
    _expect(path, "inputs", inputs, (len(inputs), pre.height, pre.width, 3), pre.input_dtype)
    _expect(path, "outputs", outputs, (len(inputs), classes), "float32")
    return inputs, outputs


def _expect(path: Path, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise RuntimeFault(
            f"{path}: '{name}': expected {dtype} {shape} as the manifest says, "
            f"got {array.dtype} {array.shape}"
        )

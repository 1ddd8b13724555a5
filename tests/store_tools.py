"""Bundles for the store's tests: sound in every byte, but no engine opens their artefact."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from runtime.digest import sha256_file
from runtime.serving.storage.store import Store
from runtime.wire.bundle_plan import BundlePlan, chunks, plan_of
from runtime.wire.refused import Refused

REF = "timm:some/vit"
NAMED = "timm-some-vit"  # what the store makes of REF


def manifest(artifact: bytes, reference: bytes) -> dict[str, Any]:
    """The manifest of a bundle with one artefact, model.tflite."""
    spec = {"name": "x", "shape": [1, 8, 8, 3], "dtype": "float32"}
    return {
        "schema_version": 1,
        "edgevit_version": "0.1.0",
        "created": "2026-11-21T00:00:00+00:00",
        "model": {
            "ref": REF,
            "num_classes": 2,
            "weights": "random",
            "weights_sha256": "0" * 64,
            "trained": False,
        },
        "preprocessing": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "height": 8,
            "width": 8,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
        },
        "classes": 2,
        "reference_sha256": hashlib.sha256(reference).hexdigest(),
        "reparam": {
            "rules": {},
            **dict.fromkeys(["params_before", "params_after", "macs_before", "macs_after"], 1),
            **dict.fromkeys(["nodes_before", "nodes_after", "inputs"], 1),
            **dict.fromkeys(["max_rel_float64", "max_rel_float32"], 0.0),
            **dict.fromkeys(["gate_float64", "gate_float32"], 1e-5),
        },
        "artifacts": {
            "tflite": {
                "target": "tflite",
                "file": "model.tflite",
                "sha256": hashlib.sha256(artifact).hexdigest(),
                "size_bytes": len(artifact),
                "precision": "fp32",
                "input": spec,
                "output": spec | {"shape": [1, 2]},
                "engine": "litert",
                "tool_versions": {},
                "verification": {"status": "passed", "prover": "test"},
                "timings_s": {},
            }
        },
        "timings_s": {},
        "machine": {},
    }


def write_bundle(
    folder: Path,
    seed: int = 0,
    size: int = 10_000,
    more: Mapping[str, bytes] | None = None,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """A bundle whose model.tflite is `size` random bytes; `more` maps paths to bytes beside it."""
    random = np.random.default_rng(seed)
    artifact = random.bytes(size)
    reference = io.BytesIO()
    np.savez(reference, inputs=np.zeros((1, 8, 8, 3), "f4"), outputs=np.zeros((1, 2), "f4"))
    described = manifest(artifact, reference.getvalue())
    if change is not None:
        change(described)
    files = {
        "model.tflite": artifact,
        "reference.npz": reference.getvalue(),
        "manifest.json": json.dumps(described).encode(),
    } | dict(more or {})
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def parts(
    plan: BundlePlan, path: Path, held: Mapping[str, int] | None = None, size: int = 4096
) -> Iterator[tuple[int, int, bytes, bytes]]:
    """What Upload.write takes, in order."""
    for request in chunks(plan, path, held or {}, size):
        if request.HasField("chunk"):
            chunk = request.chunk
            yield chunk.file, chunk.offset, chunk.data, chunk.sha256


def send(upload: Any, plan: BundlePlan, path: Path) -> Any:
    """Write all that is missing and finish."""
    for part in parts(plan, path, dict(upload.held)):
        upload.write(*part)
    return upload.finish()


def header(path: Path, name: str = "") -> Any:
    """The UploadHeader of a bundle."""
    return plan_of(path).header(name)


@contextmanager
def refused(code: grpc.StatusCode, words: str = "") -> Iterator[None]:
    """Expect a Refused of this code whose message has the words."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.code is code, caught.value
    assert words in str(caught.value), caught.value


def reopen(store: Store, quota: int | None = None) -> Store:
    """As the next agent finds it."""
    store.close()
    return Store.open(store.root, quota)


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()
    }

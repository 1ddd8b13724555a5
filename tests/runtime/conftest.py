"""A tiny network on every engine, converted once a session; and bundles made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_once import made_once
from torch import nn

from runtime.digest import sha256_of, size_of
from runtime.serving.storage.store import Store
from runtime.sessions import open_session

SIZE = 32
CLASSES = 7
FILES = {"tflite": "tiny.tflite", "onnx": "tiny.onnx", "executorch": "tiny.pte"}


class TinyNet(nn.Module):
    """Convolutions and a softmax attention; one attention product stays outside every delegate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.stem(2 * x_BCHW - 1))
        x = self.point(torch.relu(self.depthwise(x)))
        x_BNC = x.flatten(2).transpose(1, 2)
        weights = (self.q(x_BNC) @ self.k(x_BNC).transpose(1, 2)).softmax(-1)
        return self.head((x_BNC + weights @ self.v(x_BNC)).mean(1))


class TakesNHWC(nn.Module):
    """LiteRT's layout at the input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        return self.model(x_BHWC.permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Tiny:
    """The artefacts by target, the pictures (N,H,W,3) and torch's answers (N,classes)."""

    paths: dict[str, Path]
    inputs_NHWC: np.ndarray
    outputs_NK: np.ndarray

    def input_for(self, target: str, index: int = 0) -> np.ndarray:
        """Picture `index` as a batch of one in the artefact's layout."""
        x_BHWC = self.inputs_NHWC[index : index + 1]
        return x_BHWC if target == "tflite" else np.ascontiguousarray(x_BHWC.transpose(0, 3, 1, 2))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny network for every engine of this machine; not to be changed."""
    folder = made_once(tmp_path_factory, "tiny-network", convert_tiny)
    with np.load(folder / "reference.npz") as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    return Tiny({target: folder / name for target, name in FILES.items()}, inputs, outputs)


def convert_tiny(folder: Path) -> None:
    """Write its artefacts, pictures for it and torch's answers to them."""
    import litert_torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    torch.manual_seed(0)
    model = TinyNet().eval()
    for parameter in model.parameters():  # so that the answers differ well between pictures
        parameter.data *= 2
    inputs = np.random.default_rng(0).random((4, SIZE, SIZE, 3), dtype=np.float32)
    inputs[1] *= 0.3
    inputs[2, :16] = 0
    x_NHWC = torch.from_numpy(inputs)
    x_BCHW = x_NHWC[:1].permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        outputs = model(x_NHWC.permute(0, 3, 1, 2)).numpy()
    np.savez(folder / "reference.npz", inputs=inputs, outputs=outputs)
    torch.onnx.export(
        model,
        (x_BCHW,),
        folder / FILES["onnx"],
        dynamo=True,
        external_data=False,
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    edge = litert_torch.convert(TakesNHWC(model).eval(), (x_NHWC[:1],))
    edge.export(str(folder / FILES["tflite"]))
    program = to_edge_transform_and_lower(
        torch.export.export(model, (x_BCHW,)), partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    (folder / FILES["executorch"]).write_bytes(program.buffer)


def manifest_of(tiny: Tiny, folder: Path, targets: list[str]) -> dict[str, Any]:
    """A manifest for the artefacts of `targets` that lie in `folder`."""
    artifacts = {}
    for target in targets:
        path = folder / tiny.paths[target].name
        session = open_session(path)
        artifacts[target] = {
            "target": target,
            "file": path.name,
            "sha256": sha256_of(path),
            "size_bytes": size_of(path),
            "precision": "fp32",
            "input": asdict(session.input),
            "output": asdict(session.output),
            "engine": session.engine,
            "tool_versions": {},
            "verification": {"status": "passed", "prover": "test"},
            "timings_s": {},
        }
        session.close()
    return {
        "schema_version": 1,
        "edgevit_version": "0.1.0",
        "created": "2026-11-21T00:00:00+00:00",
        "model": {
            "ref": "tiny",
            "num_classes": CLASSES,
            "weights": "random",
            "weights_sha256": "0" * 64,
            "trained": False,
        },
        "preprocessing": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "height": SIZE,
            "width": SIZE,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
        },
        "classes": CLASSES,
        "reference_sha256": sha256_of(folder / "reference.npz"),
        "reparam": {
            "rules": {},
            "params_before": 1,
            "params_after": 1,
            "macs_before": 1,
            "macs_after": 1,
            "nodes_before": 1,
            "nodes_after": 1,
            "max_rel_float64": 0.0,
            "max_rel_float32": 0.0,
            "gate_float64": 1e-10,
            "gate_float32": 1e-5,
            "inputs": 4,
        },
        "artifacts": artifacts,
        "timings_s": {},
        "machine": {},
    }


MakeBundle = Callable[..., Path]


def write_bundle(
    tiny: Tiny,
    folder: Path,
    targets: tuple[str, ...],
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Make a bundle of the tiny network in a new folder; give the folder."""
    folder.mkdir()
    for target in targets:
        path = tiny.paths[target]
        (folder / path.name).write_bytes(path.read_bytes())
    np.savez(folder / "reference.npz", inputs=tiny.inputs_NHWC, outputs=tiny.outputs_NK)
    manifest = manifest_of(tiny, folder, list(targets))
    if change is not None:
        change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def make_bundle(tiny: Tiny, tmp_path: Path) -> MakeBundle:
    """Build a bundle folder; `change` may edit the manifest before it is written."""

    def make(
        *targets: str,
        change: Callable[[dict[str, Any]], object] | None = None,
        name: str = "bundle",
    ) -> Path:
        return write_bundle(tiny, tmp_path / name, targets, change)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network for LiteRT and ONNX Runtime, in a folder `tiny`; not to be changed."""
    return write_bundle(tiny, tmp_path_factory.mktemp("bundles") / "tiny", ("tflite", "onnx"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with nothing in it."""
    opened = Store.open(tmp_path / "store")
    yield opened
    opened.close()

"""A plan of three tiny sub-models, their agents, and a coordinator over them as real processes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import torch
from agent_tools import CALL_S, END_S, ROOT, START_S, Agent, ask, infer_request, running_agent
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from partition.fusion_files import save_layers
from partition.learning.fusion import Fusion, without
from partition.plan import (
    Accuracy,
    Placed,
    PlanData,
    PlanGeometry,
    PlanModel,
    PlannedDevice,
    PlannedFusion,
    PlannedSubmodel,
    PlanRecord,
    sealed,
)
from runtime.digest import sha256_file, sha256_of, sha256_tree, size_of
from runtime.manifest import Preprocessing

SIDE, LABELS = 16, ("ant", "bee", "cat", "dog", "eel", "fox")
MODEL = "tiny-vit"
CLASSES = ((0, 3), (1, 4), (2, 5), (0, 1))
WIDTHS = (4, 6, 8, 10)
DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
PREPROCESSING = {
    "mean": [0.5] * 3, "std": [0.5] * 3, "height": SIDE, "width": SIDE, "crop_pct": 1.0,
    "interpolation": "bicubic",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The weights of a sub-model: a strided convolution, ReLU, the mean, a linear layer."""

    conv: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def random(cls, seed: int, width: int) -> Part:
        draw = np.random.default_rng(seed).standard_normal
        shapes = ((8, 3, 3, 3), (width, 8), (width,))
        return cls(*(draw(shape).astype(np.float32) for shape in shapes))

    def features(self, x_BHWC: np.ndarray) -> torch.Tensor:
        """What the sub-model answers, by torch."""
        x = torch.from_numpy(np.ascontiguousarray(x_BHWC.transpose(0, 3, 1, 2)))
        x = F.conv2d(x, torch.from_numpy(self.conv), stride=2).relu().mean((2, 3))
        return F.linear(x, torch.from_numpy(self.weight), torch.from_numpy(self.bias))

    def save(self, path: Path, layout: str, rows: int | str, side: int) -> None:
        """As an ONNX file."""
        nodes = [
            helper.make_node("Conv", ["image_nchw", "conv"], ["a"], strides=[2, 2]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "weight", "bias"], ["features"], transB=1),
        ]
        nodes.insert(
            0,
            helper.make_node("Transpose", ["image"], ["image_nchw"], perm=[0, 3, 1, 2])
            if layout == "NHWC"
            else helper.make_node("Identity", ["image"], ["image_nchw"]),
        )
        shape = shape_of(layout, rows, side)
        graph = helper.make_graph(
            nodes, "part",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, len(self.bias)])],
            [
                numpy_helper.from_array(value, name)
                for name, value in (
                    ("conv", self.conv), ("weight", self.weight), ("bias", self.bias),
                )
            ],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)


@dataclass(frozen=True)
class TinyPlan:
    """A plan's folder, and the same model by torch."""

    path: Path
    digest: str
    parts: tuple[Part, ...]
    fusion: Fusion

    def bundle(self, index: int) -> Path:
        return self.path / f"sub{index}"

    def reference(self, x_BHWC: np.ndarray, lost: Collection[int] = ()) -> np.ndarray:
        """The logits with the blocks of the lost sub-models zero, as the fusion was trained."""
        with torch.no_grad():
            blocks = torch.cat([part.features(x_BHWC) for part in self.parts], 1)
            return self.fusion(without(blocks, self.fusion.widths, lost)).numpy()


def shape_of(layout: str, rows: Any, side: int = SIDE) -> list[Any]:
    return {"NCHW": [rows, 3, side, side], "NHWC": [rows, side, side, 3]}[layout]


def write_bundle(
    folder: Path, part: Part, layout: str = "NCHW", rows: int | str = 1, side: int = SIDE
) -> Path:
    """A bundle with an onnx target."""
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    part.save(path, layout, rows, side)
    batch = rows if isinstance(rows, int) else -1
    shape = shape_of(layout, batch, side)
    width = len(part.bias)
    x = pictures(2, side=side)
    np.savez(folder / "reference.npz", inputs=x, outputs=part.features(x).numpy())
    counts = ("params_before", "params_after", "macs_before", "macs_after", "nodes_before",
              "nodes_after", "inputs")  # fmt: skip
    errors = ("max_rel_float64", "max_rel_float32", "gate_float64", "gate_float32")
    manifest = {
        "schema_version": 1, "edgevit_version": "0.1.0", "created": "2026-11-21T00:00:00+00:00",
        "model": {
            "ref": folder.name, "num_classes": width, "weights": "random",
            "weights_sha256": "0" * 64, "trained": False,
        },
        "preprocessing": PREPROCESSING | {"height": side, "width": side}, "classes": width,
        "reference_sha256": sha256_of(folder / "reference.npz"),
        "reparam": {"rules": {}, **dict.fromkeys(counts, 1), **dict.fromkeys(errors, 0.0)},
        "artifacts": {
            "onnx": {
                "target": "onnx", "file": path.name, "sha256": sha256_of(path),
                "size_bytes": size_of(path), "precision": "fp32",
                "input": {"name": "image", "shape": shape, "dtype": "float32", "layout": layout},
                "output": {"name": "features", "shape": [batch, width], "dtype": "float32"},
                "engine": "onnxruntime", "tool_versions": {},
                "verification": {"status": "passed", "prover": "test"}, "timings_s": {},
            }
        },
        "timings_s": {}, "machine": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_plan(
    folder: Path,
    *,
    seed: int = 0,
    rows: int | str = 1,
    side: int = SIDE,
    layouts: tuple[str, ...] = ("NCHW", "NHWC", "NCHW"),
    replicas: tuple[tuple[str, ...], ...] = ((), (), ()),
) -> TinyPlan:
    """Sub-model i, of as many as there are layouts, runs on device i; replicas are more devices."""
    widths = WIDTHS[: len(layouts)]
    folder.mkdir()
    torch.manual_seed(seed)
    fusion = Fusion(widths, len(LABELS), hidden=(9,)).eval()
    parts = tuple(Part.random(10 * seed + i, width) for i, width in enumerate(widths))
    linears = [layer for layer in fusion.layers if isinstance(layer, torch.nn.Linear)]
    (folder / "fusion").mkdir()
    head = folder / "fusion" / "fusion.npz"
    save_layers(head, [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in linears])
    geometry = PlanGeometry(
        depth=1, heads=1, head_dim=4, embed_dim=4, mlp_dim=16, tokens=2, classes=len(LABELS)
    )
    submodels, start = [], 0
    for i, (part, width) in enumerate(zip(parts, widths, strict=True)):
        bundle = write_bundle(folder / f"sub{i}", part, layouts[i], rows, side)
        submodels.append(
            PlannedSubmodel(
                name=f"sub{i}", classes=list(CLASSES[i]), kept_sha256="0", geometry=geometry,
                params=1, macs=1, memory=1, answer_start=start, answer_values=width,
                weights_sha256="0", bundle=f"sub{i}", bundle_digest=sha256_tree(bundle),
                artifacts={"onnx": sha256_of(bundle / "model.onnx")}, artifact_bytes={"onnx": 1},
                primary=DEVICES[i], replicas=list(replicas[i] if i < len(replicas) else ()),
            )
        )  # fmt: skip
        start += width
    record = sealed(
        PlanRecord(
            edgevit_version="0.1.0", created="2026-11-21T00:00:00+00:00",
            model=PlanModel(
                ref=MODEL, weights="random", weights_sha256="0", size=side, geometry=geometry,
                params=1, macs=1, bytes=4,
            ),
            preprocessing=Preprocessing.model_validate(
                PREPROCESSING | {"height": side, "width": side}
            ),
            data=PlanData(ref="none", digest="0", train=1, test=1), labels=list(LABELS),
            split="explicit", answer="features", seed=seed, options={}, submodels=submodels,
            fusion=PlannedFusion(
                file="fusion/fusion.npz", sha256=sha256_file(head),
                widths=[sum(widths), 9, len(LABELS)], activation="relu", params=1,
                error_over_spread=0.0, pictures=1,
            ),
            devices=[
                PlannedDevice(
                    name=name, macs_per_s=1.0, measured=False, target="onnx", submodels=[],
                    replicas=[], latency=1.0, memory=1, memory_limit=None, energy=None,
                    energy_limit=None,
                )
                for name in DEVICES
            ],
            placed=Placed(method="exact", latency=1.0, greedy_gap=None),
            accuracy=Accuracy(pictures=1, full=0.0, fused=0.0, without=[], submodels={}),
            versions={}, machine={}, timings_s={},
        )
    )  # fmt: skip
    (folder / "plan.json").write_text(record.model_dump_json())
    lines = [f"  - {{name: {name}, compute: 1 GMAC/s, targets: [onnx]}}" for name in DEVICES]
    (folder / "cluster.yaml").write_text("\n".join(["devices:", *lines]) + "\n")
    return TinyPlan(folder, record.digest, parts, fusion)


def pictures(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """(count, side, side, 3) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((count, side, side, 3), dtype=np.float32)


@dataclass
class Coordinator:
    """A running coordinator."""

    address: str
    metrics: str | None
    process: subprocess.Popen[str]
    said: Path
    facts: dict[str, Any]

    def alive(self) -> bool:
        return self.process.poll() is None

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under that name."""
        lines = [json.loads(line) for line in self.said.read_text().splitlines()]
        return [line for line in lines if line["event"] == name]


@contextmanager
def coordinating(
    plan: TinyPlan, addresses: dict[str, str], *flags: object, listen: str = "127.0.0.1:0"
) -> Iterator[Coordinator]:
    """A coordinator as a process until the block ends; addresses are of devices."""
    said = Path(tempfile.mkstemp(suffix=".stderr")[1])
    words = [word for each in addresses.items() for word in ("--device", "=".join(each))]
    with said.open("w") as errors:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "partition.coordinator_main", str(plan.path), "--listen",
                listen, *words, *map(str, flags),
            ],
            cwd=plan.path.parent, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        facts = _first_line(process)
        assert facts, f"exit code {process.poll()}: {said.read_text()}"
        found = Coordinator(facts["address"], facts["metrics"], process, said, facts)
        yield found
        assert found.alive(), said.read_text()
        process.terminate()
        assert process.wait(END_S) == 0, said.read_text()
        assert "Traceback" not in said.read_text(), said.read_text()
    finally:
        process.kill()
        process.wait(END_S)
        assert process.stdout is not None
        process.stdout.close()
        said.unlink()


def _first_line(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    found: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: found.put(process.stdout.readline()), daemon=True).start()
    with suppress(queue.Empty, json.JSONDecodeError):
        return json.loads(found.get(timeout=START_S))
    return None


@contextmanager
def agents_of(
    plan: TinyPlan,
    home: Path,
    loads: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,)),
    inputs: Sequence[Path | None] = (),
) -> Iterator[list[Agent]]:
    """An agent for each device with the sub-models of these numbers, and its --inputs, if any."""
    flags = [("--inputs", folder) if folder is not None else () for folder in inputs]
    flags += [()] * (len(loads) - len(flags))
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                running_agent(home / f"store-{i}", *flags[i], load=[plan.bundle(j) for j in load])
            )
            for i, load in enumerate(loads)
        ]


def addresses_of(agents: list[Agent]) -> dict[str, str]:
    """By device."""
    return {name: agent.address for name, agent in zip(DEVICES, agents, strict=False)}


@dataclass(frozen=True)
class Answer:
    """What a client gets."""

    logits: np.ndarray
    parameters: dict[str, Any]

    @property
    def missing(self) -> list[int]:
        """Numbers of the sub-models that are left out."""
        return [int(name.removeprefix("sub")) for name in json.loads(self.parameters["missing"])]

    @property
    def blind(self) -> list[int]:
        return json.loads(self.parameters["blind_classes"])


def predict(
    channel: Any, x_BHWC: np.ndarray, layout: str = "NCHW", timeout: float = CALL_S, **fields: Any
) -> Answer:
    """One request of these pictures. Raises grpc.RpcError."""
    response = ask(channel, "ModelInfer", request_of(x_BHWC, layout, **fields), timeout=timeout)
    return answer_of(response)


def request_of(x_BHWC: np.ndarray, layout: str = "NCHW", **fields: Any) -> Any:
    x = x_BHWC if layout == "NHWC" else np.ascontiguousarray(x_BHWC.transpose(0, 3, 1, 2))
    return infer_request(MODEL, "image", x, **fields)


def answer_of(response: Any) -> Answer:
    (raw,) = response.raw_output_contents
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in response.parameters.items()
    }
    logits = np.frombuffer(raw, np.float32).reshape(list(response.outputs[0].shape))
    return Answer(logits, parameters)


def is_right(plan: TinyPlan, x_BHWC: np.ndarray, answer: Answer) -> bool:
    """Whether the logits are those of the plan without what the answer says is missing."""
    lost = answer.missing
    blind = sorted(c for i in lost for c in CLASSES[i])
    assert answer.parameters["degraded"] == bool(lost)
    assert answer.blind == blind
    return bool(np.allclose(answer.logits, plan.reference(x_BHWC, lost), rtol=1e-4, atol=1e-4))


def status_of(error: grpc.RpcError) -> str:
    return error.code().name  # type: ignore[attr-defined,no-any-return]

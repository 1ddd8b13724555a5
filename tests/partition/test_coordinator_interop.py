"""Stock clients against the coordinator: tritonclient, grpc_health, grpc_reflection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_tools import ROOT
from coordinator_tools import (
    CLASSES,
    LABELS,
    MODEL,
    SIDE,
    TinyPlan,
    addresses_of,
    agents_of,
    coordinating,
    pictures,
    write_plan,
)
from venv_tools import TRITON, make_venv, pip, run

from partition.serving.service import STAGES

CALLS = ROOT / "tests" / "tritonclient_cluster.py"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with stock clients and nothing else."""
    python = make_venv(tmp_path_factory.mktemp("stock") / "venv")
    pip(python, TRITON, "grpcio-health-checking", "grpcio-reflection")
    return python


def check_answers(
    plan: TinyPlan, answers: list[dict[str, Any]], x: list[np.ndarray], lost: list[int]
) -> None:
    """They are numpy's, and say which sub-models are missing."""
    for answer, each in zip(answers, x, strict=True):
        np.testing.assert_allclose(answer["logits"], truth(plan, each, lost), atol=1e-4)
        parameters = answer["parameters"]
        assert parameters["degraded"] is bool(lost)
        assert json.loads(parameters["missing"]) == [f"sub{i}" for i in lost]
        seen = {c for i in range(3) if i not in lost for c in CLASSES[i]}
        assert json.loads(parameters["blind_classes"]) == sorted(set(range(len(LABELS))) - seen)
        assert all(parameters[stage] >= 0 for stage in STAGES)
        assert parameters["total_us"] >= parameters["compute_us"] > 0
        assert parameters["plan_digest"] == plan.digest
        assert answer["version"] == plan.digest[:12]


def truth(plan: TinyPlan, x_BHWC: np.ndarray, lost: list[int]) -> np.ndarray:
    """The logits by numpy in float64, from the weights alone."""
    x = x_BHWC.astype(np.float64)
    blocks = []
    for i, part in enumerate(plan.parts):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
        maps = np.einsum("bhwcij,ocij->bhwo", windows, part.conv)
        features = np.maximum(maps, 0).mean((1, 2)) @ part.weight.T + part.bias
        blocks.append(features * (i not in lost))
    y = np.concatenate(blocks, 1)
    with np.load(plan.path / "fusion" / "fusion.npz") as head:
        layers = [(head[f"weight{i}"], head[f"bias{i}"]) for i in range(len(head.files) // 2)]
    for weight, bias in layers[:-1]:
        y = np.maximum(y @ weight.T + bias, 0)
    weight, bias = layers[-1]
    return y @ weight.T + bias


@pytest.mark.slow
def test_stock_clients_in_an_environment_of_their_own(stock: Path, tmp_path: Path) -> None:
    """Protobuf 7 here, protobuf 6 there; with all workers, then with one of them gone."""
    plan = write_plan(tmp_path / "plan")
    x = [pictures(1, seed) for seed in range(4)]
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, *(np.ascontiguousarray(each.transpose(0, 3, 1, 2)) for each in x))
    with (
        agents_of(plan, tmp_path) as agents,
        coordinating(plan, addresses_of(agents)) as coordinator,
    ):
        words = [CALLS, coordinator.address, MODEL, arrays]
        found = json.loads(run(stock, *words, cwd=tmp_path))
        agents[1].kill()
        after = json.loads(run(stock, *words, cwd=tmp_path))

    workers = [f"{MODEL}/sub{i}@pi-{i}" for i in range(3)]
    for each, lost in ((found, []), (after, [1])):
        assert each["live"] and each["ready"] and each["model_ready"] and not each["other_ready"]
        check_answers(plan, each["answers"], x, lost)
        check_answers(plan, each["async"], x, lost)
        assert [answer["id"] for answer in each["answers"]] == ["s"] * 4
        gone = {name: "UNAVAILABLE" for i, name in enumerate(workers) if i in lost}
        assert each["index"] == dict.fromkeys([MODEL, *workers], "READY") | gone
        assert each["health"] == dict.fromkeys(["", MODEL, "inference.GRPCInferenceService"], 1)
    metadata = found["metadata"]
    assert metadata["name"] == MODEL and metadata["versions"] == [plan.digest[:12]]
    assert [int(n) for n in metadata["inputs"][0]["shape"]] == [1, 3, SIDE, SIDE]
    assert metadata["inputs"][0]["datatype"] == metadata["outputs"][0]["datatype"] == "FP32"
    assert found["server"]["name"] == "edgevit"
    assert {name: status.removeprefix("StatusCode.") for name, (status, _) in
            found["errors"].items()} == {
        "shape": "INVALID_ARGUMENT", "dtype": "INVALID_ARGUMENT", "name": "INVALID_ARGUMENT",
        "model": "NOT_FOUND", "version": "NOT_FOUND", "output": "INVALID_ARGUMENT",
        "load": "UNIMPLEMENTED",
    }  # fmt: skip
    assert f"[1, 3, {SIDE}, {SIDE}]" in found["errors"]["shape"][1]
    services = {"grpc.health.v1.Health", "inference.GRPCInferenceService"}
    assert services <= set(found["services"])
    assert "edgevit.v1.DeviceService" not in found["services"]

"""The coordinator with all its workers: what it answers, tells and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import Agent, ask, channel_to, infer_request, refusal
from coordinator_tools import (
    CLASSES,
    LABELS,
    MODEL,
    SIDE,
    Coordinator,
    TinyPlan,
    addresses_of,
    agents_of,
    answer_of,
    coordinating,
    is_right,
    pictures,
    predict,
    request_of,
    write_plan,
)

from partition.coordinator_main import main
from partition.serving.service import STAGES
from runtime.client import AgentClient
from runtime.digest import sha256_tree
from runtime.wire.descriptors import HEALTH, REFLECTION, message, methods
from runtime.wire.input_ref import put_input_ref
from runtime.wire.service import call


@dataclass
class Cluster:
    plan: TinyPlan
    agents: list[Agent]
    coordinator: Coordinator
    channel: Any


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    plan = write_plan(home / "plan")
    with (
        agents_of(plan, home) as agents,
        coordinating(plan, addresses_of(agents), "--metrics", "127.0.0.1:0") as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        yield Cluster(plan, agents, coordinator, channel)


def test_answers_are_those_of_the_whole_model(cluster: Cluster) -> None:
    """One sub-model takes NHWC and the others NCHW, so that the picture goes out in both."""
    for seed in range(5):
        x = pictures(1, seed)
        answer = predict(cluster.channel, x)
        assert answer.missing == []
        assert is_right(cluster.plan, x, answer)
    assert not np.allclose(answer.logits, cluster.plan.reference(pictures(1, 0)), atol=1e-3)


def test_an_answer_says_where_its_time_went(cluster: Cluster) -> None:
    gaps = []
    for _ in range(20):
        told = predict(cluster.channel, pictures(1)).parameters
        assert all(told[stage] >= 0 for stage in STAGES)
        assert told["compute_us"] > 0
        gaps.append(abs(told["total_us"] - sum(told[stage] for stage in STAGES)) / told["total_us"])
    assert min(gaps) < 0.05
    assert told["plan_digest"] == cluster.plan.digest
    assert told["straggler"] in {f"sub{i}@pi-{i}" for i in range(3)}


def test_many_at_once(cluster: Cluster) -> None:
    def one(seed: int) -> bool:
        x = pictures(1, seed)
        answer = predict(cluster.channel, x)
        return answer.missing == [] and is_right(cluster.plan, x, answer)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(160)))


def test_it_tells_what_it_serves(cluster: Cluster) -> None:
    channel = cluster.channel
    assert ask(channel, "ServerLive").live
    assert ask(channel, "ServerReady").ready
    assert ask(channel, "ModelReady", name=MODEL).ready
    assert not ask(channel, "ModelReady", name="another").ready
    about = ask(channel, "ModelMetadata", name=MODEL)
    assert list(about.versions) == [cluster.plan.digest[:12]]
    assert [list(t.shape) for t in about.inputs] == [[1, 3, SIDE, SIDE]]
    assert [(t.name, list(t.shape)) for t in about.outputs] == [("logits", [1, len(LABELS)])]
    assert json.loads(about.properties["labels"]) == list(LABELS)
    assert about.properties["plan_digest"] == cluster.plan.digest
    told = json.loads(about.properties["submodels"])
    assert [tuple(told[f"sub{i}"]["classes"]) for i in range(3)] == list(CLASSES[:3])
    assert told["sub1"]["bundle_digest"] == sha256_tree(cluster.plan.bundle(1))
    rows = {m.name: m.state for m in ask(channel, "RepositoryIndex").models}
    assert rows == dict.fromkeys([MODEL, *(f"{MODEL}/sub{i}@pi-{i}" for i in range(3))], "READY")
    for service in ("", MODEL, "inference.GRPCInferenceService"):
        assert ask(channel, "Check", of=HEALTH, service=service).status == 1


def test_reflection_lists_what_is_there_and_no_device_service(cluster: Cluster) -> None:
    method = methods(REFLECTION)["ServerReflectionInfo"]
    (answer,) = call(cluster.channel, method)(iter([method.request(list_services="")]), timeout=30)
    names = {service.name for service in answer.list_services_response.service}
    assert "inference.GRPCInferenceService" in names
    assert "edgevit.v1.DeviceService" not in names


def test_the_agents_client_works_with_it(cluster: Cluster) -> None:
    x = pictures(1, 7)
    with AgentClient(cluster.coordinator.address) as client:
        result = client.infer(MODEL, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    assert np.allclose(result.output, cluster.plan.reference(x), atol=1e-4)
    assert result.parameters["degraded"] is False
    assert result.version == cluster.plan.digest[:12]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", f"only '{MODEL}'"),
        ({"model_version": "1"}, "NOT_FOUND", "not '1'"),
        ({"shape": (1, SIDE, SIDE, 3)}, "INVALID_ARGUMENT", "expected shape"),
        ({"shape": (2, 3, SIDE, SIDE)}, "INVALID_ARGUMENT", "expected shape"),
        ({"dtype": np.uint8}, "INVALID_ARGUMENT", "expected datatype FP32"),
        ({"input": "photo"}, "INVALID_ARGUMENT", "expected the inputs"),
        ({"outputs": "features"}, "INVALID_ARGUMENT", "expected an output of"),
        ({"parameter": "sequence_id"}, "INVALID_ARGUMENT", "sequence_id"),
    ],
)
def test_what_it_refuses(cluster: Cluster, change: dict[str, Any], code: str, words: str) -> None:
    x = np.zeros(change.get("shape", (1, 3, SIDE, SIDE)), change.get("dtype", np.float32))
    request = infer_request(change.get("model_name", MODEL), change.get("input", "image"), x)
    request.model_version = change.get("model_version", "")
    if "outputs" in change:
        request.outputs.add(name=change["outputs"])
    if "parameter" in change:
        request.parameters[change["parameter"]].int64_param = 1
    got, said = refusal(lambda: ask(cluster.channel, "ModelInfer", request))
    assert (got.name, words in said) == (code, True), said
    x = pictures(1)
    assert is_right(cluster.plan, x, predict(cluster.channel, x))


def test_loading_is_for_the_agents(cluster: Cluster) -> None:
    got, _ = refusal(lambda: ask(cluster.channel, "RepositoryModelLoad", model_name=MODEL))
    assert got is grpc.StatusCode.UNIMPLEMENTED


def test_two_coordinators_serve_one_plan(cluster: Cluster) -> None:
    with (
        coordinating(cluster.plan, addresses_of(cluster.agents)) as other,
        channel_to(other.address) as channel,
    ):
        x = pictures(1, 3)
        one, two = predict(cluster.channel, x), predict(channel, x)
        assert np.array_equal(one.logits, two.logits)
        assert one.parameters["plan_digest"] == two.parameters["plan_digest"]


def test_metrics(cluster: Cluster) -> None:
    agent = Agent("", cluster.coordinator.metrics, cluster.coordinator.process, Path())
    before = agent.sample("edgevit_cluster_requests_total", status="OK", degraded="false")
    calls = agent.sample("edgevit_cluster_worker_calls_total", status="OK")
    for _ in range(3):
        predict(cluster.channel, pictures(1))
    assert agent.sample("edgevit_cluster_requests_total", status="OK", degraded="false") == (
        before + 3
    )
    assert agent.sample("edgevit_cluster_worker_calls_total", status="OK") == calls + 9
    assert agent.sample("edgevit_cluster_worker_up") == 3


def test_agents_without_inputs_stay_workers(cluster: Cluster) -> None:
    """To whom a request comes that names a picture of their own."""
    before = cluster.coordinator.events("worker is out")
    request = message("inference.ModelInferRequest")(model_name=MODEL)
    put_input_ref(request, "camera")
    for _ in range(5):
        code, text = refusal(lambda: ask(cluster.channel, "ModelInfer", request))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "start it with --inputs DIR" in text
        assert predict(cluster.channel, pictures(1)).missing == []
    assert cluster.coordinator.events("worker is out") == before


def test_pictures_that_wait_together_are_asked_together(tmp_path: Path) -> None:
    """Where the workers' models take any number of rows."""
    plan = write_plan(tmp_path / "plan", rows="n")
    with (
        agents_of(plan, tmp_path) as agents,
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        x = pictures(5, 1)
        assert is_right(plan, x, predict(channel, x))
        got, said = refusal(lambda: predict(channel, pictures(17)))
        assert got is grpc.StatusCode.INVALID_ARGUMENT and "at most 16 rows" in said
        method = methods("inference.GRPCInferenceService")["ModelInfer"]
        asked = [pictures(1 + seed % 3, seed) for seed in range(60)]
        under_way = [call(channel, method).future(request_of(x), timeout=60) for x in asked]
        answers = [answer_of(each.result()) for each in under_way]
        assert all(is_right(plan, x, answer) for x, answer in zip(asked, answers, strict=True))
        assert max(answer.parameters["batch_size"] for answer in answers) > 1


def test_a_token_is_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    addresses = addresses_of(cluster.agents)
    with (
        coordinating(cluster.plan, addresses, "--token-file", token) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        got, _ = refusal(lambda: predict(channel, pictures(1)))
        assert got is grpc.StatusCode.UNAUTHENTICATED
        request = request_of(pictures(1))
        metadata = [("authorization", "Bearer a-token-of-some-length")]
        answer = answer_of(ask(channel, "ModelInfer", request, metadata=metadata))
        assert is_right(cluster.plan, pictures(1), answer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "0.0.0.0:0"], "open to the network"),
        (["--worker-timeout", "0"], "--worker-timeout above 0"),
        (["--log-level", "loud"], "expected a --log-level"),
        (["--device", "pi-0"], "expected NAME=HOST:PORT"),
        (["--device", "pi-9=127.0.0.1:1"], "no device 'pi-9'"),
        (["--device", "pi-0=nowhere"], "HOST:PORT"),
        ([], "pi-0 has no address"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([str(cluster.plan.path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_fusion_head_with_other_bytes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path / "plan")
    head = plan.path / "fusion" / "fusion.npz"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    assert main([str(plan.path), "--device", "pi-0=127.0.0.1:1"]) == 1
    assert "is not what the plan was made with" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, partition.coordinator, partition.coordinator_main;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'onnx', 'onnxruntime', 'converters')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

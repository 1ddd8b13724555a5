"""Clients and engines not of ours: stock tritonclient, a probe, an old TFLite with numpy 1."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import ask, channel_to, infer_request, refusal, running_agent
from cli_tools import ROOT, TINY, edgevit, write_model
from google.protobuf import descriptor_pb2, descriptor_pool
from venv_tools import TRITON, make_venv, pip, run

from runtime.bundle import read_bundle, read_reference
from runtime.sessions import open_session
from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE, REFLECTION, REFLECTION_ALPHA
from runtime.wire.descriptors import methods as methods_of
from runtime.wire.service import call
from runtime.wire.tensors import read_outputs

CALLS = ROOT / "tests" / "tritonclient_calls.py"
NAME = "tinynet-net"  # what the agent calls a bundle of `tinynet:net`


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package as users install it; made from a copy, for the build leaves files behind."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    source.mkdir()
    for name in ("edgevit", "converters", "runtime", "partition"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    run(sys.executable, *words, "-w", home, source, cwd=home)
    (made,) = home.glob("edgevit-*.whl")
    return made


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with tritonclient and nothing else."""
    python = make_venv(tmp_path_factory.mktemp("stock") / "venv")
    pip(python, TRITON)
    return python


@pytest.fixture(scope="module")
def together(stock: Path, wheel: Path) -> Path:
    """The same environment with this package and LiteRT added; runs after the tests of `stock`."""
    pip(stock, TRITON, wheel, "ai-edge-litert")
    return stock


@pytest.fixture(scope="module")
def old(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with this package, tflite-runtime and numpy 1."""
    python = make_venv(tmp_path_factory.mktemp("old") / "venv")
    pip(python, wheel, "tflite-runtime==2.14.0", "numpy<2")
    return python


@dataclass(frozen=True)
class Made:
    """A bundle of the command line, one picture for it, and what the local session says to it."""

    bundle: Path
    arrays: Path
    x: np.ndarray
    logits: np.ndarray


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = write_model(tmp_path_factory.mktemp("interop"))
    answer = edgevit("convert", TINY, "--to", "tflite", "-o", "net", cwd=home)
    assert answer.code == 0, answer.err
    x = read_reference(read_bundle(home / "net"))[0][:1]
    np.savez(home / "arrays.npz", x=x)
    session = open_session(home / "net" / "model.tflite")
    logits = session.run(x)
    session.close()
    return Made(home / "net", home / "arrays.npz", x, logits)


def check(found: dict[str, Any], made: Made, tolerance: float) -> None:
    """What tritonclient saw is what the protocol and the local session say."""
    assert found["live"] and found["ready"]
    assert "model_repository" in found["server"]["extensions"]
    assert found["server"]["name"] and found["server"]["version"]
    assert found["index_before"][NAME] == "UNAVAILABLE"
    assert found["index_loaded"][NAME] == "READY"
    assert found["model_ready"] and not found["other_ready"]
    metadata = found["metadata"]
    assert metadata["name"] == NAME and metadata["platform"] == "edgevit_litert"
    assert metadata["inputs"][0]["datatype"] == metadata["outputs"][0]["datatype"] == "FP32"
    assert [int(n) for n in metadata["inputs"][0]["shape"]] == list(made.x.shape)
    assert metadata["versions"] == [found["version"]]
    for output in (found["output"], found["again"]):
        np.testing.assert_allclose(output, made.logits, rtol=0, atol=tolerance)
    assert found["id"] == "seven"
    assert [number for number, _, _ in found["streamed"]] == ["0", "", "2"]
    for _, output, error in (found["streamed"][0], found["streamed"][2]):
        np.testing.assert_allclose(output, made.logits, rtol=0, atol=tolerance)
        assert not error
    assert found["streamed"][1][1] is None and "[1, 2, 2, 3]" in found["streamed"][1][2]
    parts = ("queue_us", "decode_us", "compute_us", "encode_us", "total_us")
    assert set(parts) <= set(found["timings"])
    assert found["timings"]["total_us"] >= found["timings"]["compute_us"] > 0
    errors = {name: status.removeprefix("StatusCode.") for name, (status, _) in
              found["errors"].items()}  # fmt: skip
    assert errors.pop("output") in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert errors.pop("unloaded") in ("NOT_FOUND", "UNAVAILABLE", "FAILED_PRECONDITION")
    assert errors == {
        "shape": "INVALID_ARGUMENT", "model": "NOT_FOUND", "version": "NOT_FOUND",
        "load": "NOT_FOUND", "statistics": "UNIMPLEMENTED",
    }  # fmt: skip
    assert "[1, 2, 2, 3]" in found["errors"]["shape"][1]
    assert not found["ready_after_unload"]


@pytest.mark.slow
def test_stock_tritonclient_in_an_environment_of_its_own(
    stock: Path, made: Made, tmp_path: Path
) -> None:
    """The agent runs with protobuf 7 here, the client with protobuf 6 there."""
    with running_agent(tmp_path / "store", load=[made.bundle]) as agent:
        with channel_to(agent.address) as channel:
            ask(channel, "RepositoryModelUnload", model_name=NAME)
        printed = run(stock, CALLS, agent.address, NAME, made.arrays, cwd=tmp_path)
    check(json.loads(printed), made, tolerance=0)


IN_ONE_PROCESS = """
import asyncio, json, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tritonclient.grpc
import tritonclient_calls
import google.protobuf, numpy
from runtime.agent import AgentConfig, serve
from runtime.client import AgentClient
from runtime.wire.descriptors import INFERENCE, message

store, bundle, arrays, NAME = *map(Path, sys.argv[2:5]), sys.argv[5]
answers = {"protobuf": google.protobuf.__version__, "from": sys.modules["runtime"].__file__}
started, loop = threading.Event(), asyncio.new_event_loop()

def ready(running):
    answers["address"] = str(running.address)
    started.set()

stop = asyncio.Event()
config = AgentConfig(store, listen="127.0.0.1:0", load=(str(bundle),))
serving = serve(config, ready, stop)
thread = threading.Thread(target=lambda: loop.run_until_complete(serving), daemon=True)
thread.start()
assert started.wait(60)
x = numpy.load(arrays)["x"]
with AgentClient(answers["address"]) as ours:
    ours.unload(NAME)
    answers["found"] = tritonclient_calls.everything(answers["address"], NAME, x)
    (answers["ours"],) = [y.tolist() for y in ours.infer(NAME, x).outputs.values()]
    theirs = tritonclient.grpc.service_pb2.ModelInferRequest(model_name=NAME, id="7")
    again = message("inference.ModelInferRequest").FromString(theirs.SerializeToString())
    answers["same"] = again.model_name == NAME and again.id == "7"
loop.call_soon_threadsafe(stop.set)
thread.join(60)
answers["ended"] = not thread.is_alive()
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_tritonclient_and_the_agent_in_one_process(
    together: Path, made: Made, tmp_path: Path
) -> None:
    """Protobuf 6 for both: two copies of the same messages, neither in the other's way."""
    words = [CALLS.parent, tmp_path / "store", made.bundle, made.arrays, NAME]
    printed = run(together, "-c", IN_ONE_PROCESS, *words, cwd=tmp_path)
    answers = json.loads(printed.splitlines()[-1])
    assert answers["protobuf"].startswith("6.")
    assert Path(answers["from"]).is_relative_to(together.parents[1]), "not the installed package"
    check(answers["found"], made, tolerance=1e-5)
    np.testing.assert_allclose(answers["ours"], made.logits, rtol=0, atol=1e-5)
    assert answers["same"] and answers["ended"]


@pytest.mark.slow
def test_an_old_tflite_with_numpy_1_serves_a_bundle_of_today(
    old: Path, made: Made, tmp_path: Path
) -> None:
    """No torch, no other engine; every reference picture within the gate of the bundle."""
    modules = "torch", "ai_edge_litert", "onnxruntime", "executorch", "tflite_runtime", "numpy"
    code = f"from importlib.util import find_spec; print(*[m for m in {modules} if find_spec(m)])"
    assert run(old, "-c", code, cwd=tmp_path).split() == ["tflite_runtime", "numpy"]
    assert run(old, "-c", "import numpy; print(numpy.__version__)", cwd=tmp_path).startswith("1.")
    bundle = read_bundle(made.bundle)
    inputs, want = read_reference(bundle)
    with (
        running_agent(tmp_path / "store", load=[made.bundle], python=old) as agent,
        channel_to(agent.address) as channel,
    ):
        described = ask(channel, "Describe", of=DEVICE)
        (engine,) = [e for e in described.engines if e.available]
        assert (engine.package, engine.version) == ("tflite-runtime", "2.14.0")
        (spec,) = ask(channel, "ModelMetadata", name=NAME).inputs
        got = []
        for x in inputs:
            answer = ask(channel, "ModelInfer", infer_request(NAME, spec.name, x[None]))
            got += list(read_outputs(answer).values())
    spread = max(float(np.abs(a - b).max()) for a in want for b in want)
    gate = bundle.artifact("tflite").verification.gates["error_over_spread"]
    assert np.abs(np.concatenate(got) - want).max() / spread <= gate


def test_a_health_probe_and_reflection(tmp_path: Path, tiny_bundle: Path) -> None:
    """As grpc_health_probe and grpcurl ask, by both names of reflection."""
    with (
        running_agent(tmp_path / "store", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        for service in ("", "tiny", INFERENCE, DEVICE):
            assert ask(channel, "Check", of=HEALTH, service=service).status == 1
        code, _ = refusal(lambda: ask(channel, "Check", of=HEALTH, service="absent"))
        assert code == grpc.StatusCode.NOT_FOUND
        ask(channel, "RepositoryModelUnload", model_name="tiny")
        assert ask(channel, "Check", of=HEALTH, service="tiny").status == 2
        assert ask(channel, "Check", of=HEALTH, service="").status == 1

        for reflection in (REFLECTION, REFLECTION_ALPHA):
            method = methods_of(reflection)["ServerReflectionInfo"]
            questions = [
                method.request(list_services=""),
                method.request(file_containing_symbol=INFERENCE),
                method.request(file_containing_symbol=f"{DEVICE}.Profile"),
                method.request(file_containing_symbol="absent.Service"),
            ]
            listed, inference, device, absent = call(channel, method)(iter(questions), timeout=60)
            names = {s.name for s in listed.list_services_response.service}
            assert names == {INFERENCE, DEVICE, HEALTH, REFLECTION, REFLECTION_ALPHA}
            assert absent.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
            pool = descriptor_pool.DescriptorPool()
            for answer in (inference, device):
                for data in answer.file_descriptor_response.file_descriptor_proto:
                    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
            calls = {m.name for m in pool.FindServiceByName(INFERENCE).methods}
            assert {"ModelInfer", "RepositoryModelLoad"} <= calls
            assert pool.FindServiceByName(DEVICE).methods_by_name["Profile"].server_streaming

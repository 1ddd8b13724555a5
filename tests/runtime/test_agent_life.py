"""The life of an agent's process: start, readiness, drain, sudden death, and start again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from agent_tools import (
    Agent,
    ask,
    channel_to,
    engines_of,
    eventually,
    infer_request,
    refusal,
    running_agent,
)
from cli_tools import ROOT, edgevit

from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE, methods
from runtime.wire.service import call
from runtime.wire.tensors import read_outputs

SERVING, NOT_SERVING = 1, 2
END_S = 30.0


def health(channel: Any, service: str = "") -> int:
    return int(ask(channel, "Check", of=HEALTH, service=service).status)


def picture_request(channel: Any, tiny: Any, model: str = "tiny") -> Any:
    wanted = methods(INFERENCE)["ModelMetadata"].request(name=model)
    (spec,) = ask(channel, "ModelMetadata", wanted).inputs
    return infer_request(model, spec.name, tiny.input_for("tflite"))


def stop_engine(agent: Agent) -> psutil.Process:
    """SIGSTOP the only engine: its requests stay under way until SIGCONT."""
    (engine,) = agent.engines()
    engine.suspend()
    return engine


def events(agent: Agent) -> list[dict[str, Any]]:
    """The log so far, which is JSON in every line."""
    return [json.loads(line) for line in agent.stderr().splitlines()]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, END_S)[1]


@contextmanager
def free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    yield port


def test_live_at_once_and_ready_with_its_models(tmp_path: Path, tiny_bundle: Path) -> None:
    """While an engine loads, stopped for it, the agent is live, not ready, and tells both."""
    with free_port() as port:
        words = ["agent", "--listen", f"127.0.0.1:{port}", "--store", "store", "--load", "tiny"]
        added = edgevit(
            "agent", "--listen", f"127.0.0.1:{port}", "--store", tmp_path / "store", "--load",
            tiny_bundle, "--tls-cert", "nowhere", cwd=tmp_path, timeout=60,
        )  # fmt: skip
        assert added.code == 2  # nothing starts with half of its flags
        assert not (tmp_path / "store").exists()
        words[-1] = str(tiny_bundle)
        process = subprocess.Popen(
            [sys.executable, "-m", "edgevit", *words], cwd=tmp_path, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stopped: list[psutil.Process] = []
        try:

            def stopped_engine() -> bool:
                stopped[:] = engines_of(process.pid)
                for child in stopped:
                    child.suspend()
                return bool(stopped)

            eventually(stopped_engine, 30)
            with channel_to(f"127.0.0.1:{port}") as channel:
                assert ask(channel, "ServerLive").live
                assert not ask(channel, "ServerReady").ready
                assert health(channel) == health(channel, INFERENCE) == NOT_SERVING
                assert health(channel, "tiny") == NOT_SERVING
                assert health(channel, DEVICE) == health(channel, HEALTH) == SERVING
                (entry,) = ask(channel, "RepositoryIndex").models
                assert entry.state == "LOADING"
                stopped[0].resume()
                eventually(lambda: ask(channel, "ServerReady").ready, 60)
                assert process.stdout is not None
                assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
                assert health(channel) == health(channel, INFERENCE) == SERVING
                assert health(channel, "tiny") == SERVING
            process.terminate()
            assert process.wait(END_S) == 0
        finally:
            for child in stopped:
                if child.is_running():
                    child.resume()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_sigterm_answers_what_is_under_way(tmp_path: Path, tiny_bundle: Path, tiny: Any) -> None:
    """Not serving first; the request in the engine is answered; new ones are refused."""
    with (
        running_agent(tmp_path / "store", "--grace", "20", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request = picture_request(channel, tiny)
        watch = call(channel, methods(HEALTH)["Watch"])(methods(HEALTH)["Watch"].request())
        assert next(watch).status == SERVING
        engine = stop_engine(agent)
        under_way = call(channel, methods(INFERENCE)["ModelInfer"]).future(request, timeout=60)
        described = methods(DEVICE)["Describe"].request()
        eventually(lambda: _is_busy(channel, request))
        agent.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert list(watch) == []  # and it ends, so that it does not use up the grace period
        with channel_to(agent.address) as late:
            code, _ = refusal(lambda: ask(late, "Describe", described, of=DEVICE, timeout=10))
            assert code is grpc.StatusCode.UNAVAILABLE
        assert agent.alive() and not under_way.done()
        engine.resume()
        (got,) = read_outputs(under_way.result()).values()
        np.testing.assert_allclose(got[0], tiny.outputs_NK[0], atol=1e-5)
        assert agent.process.wait(END_S) == 0
        assert [e["event"] for e in events(agent)][-2:] == ["draining", "ended"]
    assert gone([engine])


def _is_busy(channel: Any, request: Any) -> bool:
    """Whether the engine has a request: a second one has to wait, beyond this deadline."""
    try:
        ask(channel, "ModelInfer", request, timeout=0.2)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    return False


def test_the_grace_period_ends_a_call_that_does_not(
    tmp_path: Path, tiny_bundle: Path, tiny: Any
) -> None:
    """An engine that hangs must not keep the device from shutting down."""
    with (
        running_agent(tmp_path / "store", "--grace", "1", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request = picture_request(channel, tiny)
        engine = stop_engine(agent)
        under_way = call(channel, methods(INFERENCE)["ModelInfer"]).future(request, timeout=60)
        eventually(lambda: _is_busy(channel, request))
        agent.process.terminate()
        assert agent.process.wait(END_S) == 0
        assert under_way.exception(END_S).code() in (
            grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
        )  # fmt: skip
        assert gone([engine])


def test_a_second_signal_ends_at_once(tmp_path: Path, tiny_bundle: Path, tiny: Any) -> None:
    with (
        running_agent(tmp_path / "store", "--grace", "300", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request = picture_request(channel, tiny)
        engine = stop_engine(agent)
        under_way = call(channel, methods(INFERENCE)["ModelInfer"]).future(request, timeout=60)
        eventually(lambda: _is_busy(channel, request))
        agent.process.send_signal(signal.SIGINT)
        eventually(lambda: any(e["event"] == "draining" for e in events(agent)))
        assert agent.alive()
        agent.process.send_signal(signal.SIGINT)
        assert agent.process.wait(END_S) == 128 + signal.SIGINT
        assert under_way.exception(END_S) is not None
        engine.resume()
        assert gone([engine])


def test_sigkill_leaves_nothing_behind_and_the_next_start_finds_all(
    tmp_path: Path, tiny_bundle: Path, tiny: Any
) -> None:
    store = tmp_path / "store"
    with running_agent(store, load=[tiny_bundle]) as agent, channel_to(agent.address) as channel:
        load = methods(INFERENCE)["RepositoryModelLoad"].request(model_name="tiny/onnx")
        load.parameters["threads"].int64_param = 2
        ask(channel, "RepositoryModelLoad", load)
        first = ask(channel, "Describe", of=DEVICE)
        engines = agent.engines()
        assert len(engines) == 2
        agent.kill()
        assert gone(engines)
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        again = ask(channel, "Describe", of=DEVICE)
        assert again.device_id == first.device_id
        assert again.generation == first.generation + 1
        models = {model.name: (model.state, model.threads) for model in again.models}
        assert models == {"tiny": ("READY", 1), "tiny/onnx": ("READY", 2)}
        answer = ask(channel, "ModelInfer", picture_request(channel, tiny))
        (got,) = read_outputs(answer).values()
        np.testing.assert_allclose(got[0], tiny.outputs_NK[0], atol=1e-5)


def test_this_start_says_how_its_own_models_are_served(tmp_path: Path, tiny_bundle: Path) -> None:
    store = tmp_path / "store"

    def threads(*flags: str) -> dict[str, int]:
        with (
            running_agent(store, *flags, load=[tiny_bundle]) as agent,
            channel_to(agent.address) as channel,
        ):
            if not flags:
                ask(channel, "RepositoryModelLoad", model_name="tiny/onnx")
            return {m.name: m.threads for m in ask(channel, "Describe", of=DEVICE).models}

    assert threads() == {"tiny": 1, "tiny/onnx": 1}
    assert threads("--threads", "2") == {"tiny": 2, "tiny/onnx": 1}  # the second as it was


def test_a_remembered_model_whose_bytes_have_changed(
    tmp_path: Path, tiny_bundle: Path, tiny: Any
) -> None:
    """The agent starts with the others and says what is wrong; asked for by name it does not."""
    store = tmp_path / "store"
    with running_agent(store, load=[tiny_bundle]) as agent, channel_to(agent.address) as channel:
        load = methods(INFERENCE)["RepositoryModelLoad"].request(model_name="tiny/onnx")
        ask(channel, "RepositoryModelLoad", load)
        assert agent.stop() == 0
    (artifact,) = store.glob("bundles/*/tiny.onnx")
    changed = bytearray(artifact.read_bytes())
    changed[-1] ^= 1
    artifact.chmod(0o600)
    artifact.write_bytes(changed)
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        assert ask(channel, "ServerReady").ready
        assert read_outputs(ask(channel, "ModelInfer", picture_request(channel, tiny)))
        assert any("tiny/onnx" in e["event"] for e in events(agent) if e["level"] == "warning")
        code, text = refusal(lambda: ask(channel, "RepositoryModelLoad", load))
        assert code is grpc.StatusCode.DATA_LOSS and "sha256" in text
    words = ["agent", "--listen", "127.0.0.1:0", "--store", store, "--load", "tiny/onnx"]
    answer = edgevit(*words, cwd=tmp_path, timeout=60)
    assert answer.code == 2 and "sha256" in answer.err


def test_a_second_agent_on_the_store_or_the_port(tmp_path: Path, tiny_bundle: Path) -> None:
    with running_agent(tmp_path / "store", load=[tiny_bundle]) as agent:
        words = ["agent", "--listen", "127.0.0.1:0", "--store", tmp_path / "store"]
        answer = edgevit(*words, cwd=tmp_path, timeout=60)
        assert answer.code == 2 and answer.out == ""
        assert f"process {agent.pid}" in answer.err and "--store" in answer.err
        words = ["agent", "--listen", agent.address, "--store", tmp_path / "other"]
        answer = edgevit(*words, cwd=tmp_path, timeout=60)
        assert answer.code == 2 and answer.out == ""
        assert f"cannot listen on {agent.address}" in answer.err
        assert "Address already in use" in answer.err
        with channel_to(agent.address) as channel:
            assert ask(channel, "ServerReady").ready


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path, make_bundle: Any) -> None:
    """It was asked for by name: whoever started the agent is to know, also a service manager."""

    def break_it(manifest: dict[str, Any]) -> None:
        manifest["artifacts"]["tflite"]["verification"] = {
            "status": "failed", "prover": "test", "reason": "an input-blind artefact",
        }  # fmt: skip

    bundle = make_bundle("tflite", change=break_it)
    words = ["agent", "--listen", "127.0.0.1:0", "--store", "store", "--load"]
    answer = edgevit(*words, bundle, cwd=tmp_path, timeout=60)
    assert answer.code == 2 and "an input-blind artefact" in answer.err
    (tmp_path / "empty").mkdir()
    for wrong, part in (
        ("nobody", "'nobody'"),
        ("./none", "no such folder"),
        ("empty", "manifest"),
    ):
        answer = edgevit(*words, wrong, cwd=tmp_path, timeout=60)
        assert answer.code == 2 and part in answer.err and answer.out == ""


def test_a_unix_socket_and_the_logs(tmp_path: Path, tiny_bundle: Path, tiny: Any) -> None:
    """The whole agent behind a file; at level debug each call is a line, its metadata in none."""
    secret = "a-value-that-nobody-logs"
    path = tmp_path / "agent.sock"
    with (
        running_agent(
            tmp_path / "store", "--log-level", "debug", load=[tiny_bundle], listen=f"unix:{path}"
        ) as agent,
        channel_to(agent.address) as channel,
    ):
        assert agent.address == f"unix:{path}"
        ask(channel, "ModelInfer", picture_request(channel, tiny), metadata=[("x-key", secret)])
        refusal(lambda: ask(channel, "Describe", of=DEVICE, timeout=0.000001))
        eventually(lambda: "ModelInfer" in agent.stderr())
        calls = [event for event in events(agent) if event["event"] == "call"]
        (infer,) = [event for event in calls if event["call"] == f"/{INFERENCE}/ModelInfer"]
        assert infer["status"] == "OK" and infer["seconds"] > 0 and infer["level"] == "debug"
        assert secret not in agent.stderr()
    assert not path.exists()


def test_an_idle_agent_uses_no_processor(tmp_path: Path, tiny_bundle: Path) -> None:
    """Over two seconds: a device on a battery serves most of the time nobody."""
    with running_agent(tmp_path / "store", load=[tiny_bundle]) as agent:
        processes = [psutil.Process(agent.pid), *agent.engines()]

        def used() -> float:
            return sum(sum(p.cpu_times()[:2]) for p in processes)

        time.sleep(0.5)
        before = used()
        time.sleep(2)
        assert used() - before < 0.5  # one that polls uses all of them


def test_inference_goes_on_while_bundles_come(tmp_path: Path, tiny_bundle: Path, tiny: Any) -> None:
    """Loading, describing and inferring at once on one loop, none waits for the other's end."""
    with (
        running_agent(tmp_path / "store", load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        request, done, faults = picture_request(channel, tiny), threading.Event(), []

        def work() -> None:
            while not done.is_set():
                try:
                    ask(channel, "ModelInfer", request, timeout=20)
                except grpc.RpcError as error:
                    faults.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for threads in (2, 1, 2):
                load = methods(INFERENCE)["RepositoryModelLoad"].request(model_name="tiny")
                load.parameters["threads"].int64_param = threads
                ask(channel, "RepositoryModelLoad", load)
                ask(channel, "Describe", of=DEVICE)
        finally:
            done.set()
            thread.join(60)
        assert faults == []

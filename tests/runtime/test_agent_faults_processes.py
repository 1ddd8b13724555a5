"""Processes that die: an engine under load, the agent itself; and two agents for one store."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from agent_tools import (
    Agent,
    ask,
    channel_to,
    eventually,
    infer_request,
    input_name,
    refusal,
    running_agent,
)
from cli_tools import edgevit

from runtime.wire.descriptors import DEVICE
from runtime.wire.tensors import read_outputs

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass
class Load:
    """Clients that ask for a model without a pause, and what they were answered."""

    model: str
    ok: Counter[str] = field(default_factory=Counter)
    refused: Counter[grpc.StatusCode] = field(default_factory=Counter)
    wrong: list[float] = field(default_factory=list)

    def work(self, agent: Agent, x: np.ndarray, want: np.ndarray, end: threading.Event) -> None:
        with channel_to(agent.address) as channel:
            request = infer_request(self.model, input_name(channel, self.model), x)
            while not end.is_set():
                try:
                    answer = ask(channel, "ModelInfer", request, timeout=30)
                except grpc.RpcError as error:
                    self.refused[error.code()] += 1  # type: ignore[attr-defined]
                    time.sleep(0.02)
                    continue
                (output,) = read_outputs(answer).values()
                self.ok[self.model] += 1
                error = float(np.abs(output[0] - want).max())
                if error > 1e-5:
                    self.wrong.append(error)


@pytest.fixture
def agent(tmp_path: Path, tiny_bundle: Path) -> Iterator[Agent]:
    """Two models, each with an engine process of its own."""
    flags = ["--metrics", "127.0.0.1:0"]
    with (
        running_agent(tmp_path / "store", *flags, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        for target in ("tflite", "onnx"):
            ask(channel, "RepositoryModelLoad", model_name=f"tiny/{target}")
        ask(channel, "RepositoryModelUnload", model_name="tiny")
        eventually(lambda: len(agent.engines()) == 2)
        yield agent


def test_an_engine_that_is_killed_under_load(agent: Agent, tiny: Any) -> None:
    """The other model goes on without a fault; the killed one answers again by itself."""
    loads = {target: Load(f"tiny/{target}") for target in ("tflite", "onnx")}
    end = threading.Event()
    with ExitStack() as threads:
        for target, load in loads.items():
            x, want = tiny.input_for(target), tiny.outputs_NK[0]
            for _ in range(4):
                thread = threading.Thread(target=load.work, args=(agent, x, want, end))
                thread.start()
                threads.callback(thread.join, 60)
        threads.callback(end.set)
        eventually(lambda: all(load.ok.total() > 20 for load in loads.values()))
        before = {target: load.ok.total() for target, load in loads.items()}
        victim = agent.engines()[0]
        victim.send_signal(signal.SIGKILL)
        eventually(lambda: len([e for e in agent.engines() if e.pid != victim.pid]) == 2)
        restarted = {target: load.ok.total() for target, load in loads.items()}
        eventually(lambda: all(loads[t].ok.total() > restarted[t] + 20 for t in loads))
    hit = [target for target, load in loads.items() if load.refused]
    assert len(hit) <= 1, {target: dict(load.refused) for target, load in loads.items()}
    for target, load in loads.items():
        assert set(load.refused) <= {UNAVAILABLE}
        assert load.ok.total() > before[target] and not load.wrong
    assert agent.sample("edgevit_engine_restarts_total") == 1
    assert agent.alive()


def test_an_engine_that_dies_again_and_again_is_given_up(agent: Agent, tiny: Any) -> None:
    """The breaker: the model is UNAVAILABLE with the reason until somebody loads it again."""
    with channel_to(agent.address) as channel:

        def state() -> Any:
            (entry,) = [
                m for m in ask(channel, "RepositoryIndex").models if m.name == "tiny/tflite"
            ]
            return entry

        name = input_name(channel, "tiny/tflite")
        others = engine_of(agent, channel, "tiny/onnx", tiny)
        for _ in range(30):
            for engine in agent.engines():
                if engine.pid != others:
                    engine.kill()
            if state().state == "UNAVAILABLE":
                break
            time.sleep(0.5)
        eventually(lambda: state().state == "UNAVAILABLE")
        assert state().reason
        assert not ask(channel, "ModelReady", name="tiny/tflite").ready
        request = infer_request("tiny/tflite", name, tiny.input_for("tflite"))
        code, text = refusal(lambda: ask(channel, "ModelInfer", request))
        assert code == UNAVAILABLE and "tiny/tflite" in text
        assert ask(channel, "ModelReady", name="tiny/onnx").ready
        ask(channel, "RepositoryModelLoad", model_name="tiny/tflite")
        assert_right(channel, "tiny/tflite", tiny)
        assert_right(channel, "tiny/onnx", tiny)


def engine_of(agent: Agent, channel: Any, model: str, tiny: Any) -> int:
    """The process that works while a model is asked: its pid."""
    before = {e.pid: e.cpu_times().user for e in agent.engines()}
    for _ in range(200):
        assert_right(channel, model, tiny)
    used = {e.pid: e.cpu_times().user - before[e.pid] for e in agent.engines()}
    return max(used, key=lambda pid: used[pid])


def assert_right(channel: Any, model: str, tiny: Any) -> None:
    target = model.partition("/")[2] or "tflite"
    request = infer_request(model, input_name(channel, model), tiny.input_for(target))
    (output,) = read_outputs(ask(channel, "ModelInfer", request)).values()
    np.testing.assert_allclose(output[0], tiny.outputs_NK[0], atol=1e-5)


def test_after_a_sigkill_everything_is_there_again(
    tmp_path: Path, tiny: Any, tiny_bundle: Path
) -> None:
    store = tmp_path / "store"
    with running_agent(store, load=[tiny_bundle]) as agent, channel_to(agent.address) as channel:
        ask(channel, "RepositoryModelLoad", model_name="tiny/onnx")
        first = ask(channel, "Describe", of=DEVICE)
        engines = agent.engines()
        assert len(engines) == 2
        agent.kill()
        _, left = psutil.wait_procs(engines, 20)
        assert not left, "the engines outlive their agent"
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        again = ask(channel, "Describe", of=DEVICE)
        assert again.device_id == first.device_id and again.generation == first.generation + 1
        assert [b.digest for b in again.bundles] == [b.digest for b in first.bundles]
        for model in ("tiny", "tiny/onnx"):  # what was loaded is loaded again, unasked
            eventually(lambda model=model: ask(channel, "ModelReady", name=model).ready)
            assert_right(channel, model, tiny)


def test_a_second_agent_on_the_store_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    store = tmp_path / "store"
    with running_agent(store, load=[tiny_bundle]) as agent, channel_to(agent.address) as channel:
        words = ["agent", "--listen", "127.0.0.1:0", "--store", store]
        answer = edgevit(*words, cwd=tmp_path, timeout=60)
        assert answer.code == 2 and str(agent.pid) in answer.err
        assert ask(channel, "ModelReady", name="tiny").ready


def test_a_second_agent_on_the_port_is_refused(tmp_path: Path) -> None:
    with running_agent(tmp_path / "store") as agent, channel_to(agent.address) as channel:
        words = ["agent", "--listen", agent.address, "--store", tmp_path / "other"]
        answer = edgevit(*words, cwd=tmp_path, timeout=60)
        port = agent.address.rpartition(":")[2]
        assert answer.code == 2 and port in answer.err
        assert ask(channel, "ServerReady").ready


def test_sigterm_answers_what_was_begun(tmp_path: Path, tiny: Any, tiny_bundle: Path) -> None:
    """Under load: exit 0 within the grace period, and no call is cut off with a wrong status."""
    with running_agent(tmp_path / "store", load=[tiny_bundle]) as agent:
        load, end = Load("tiny"), threading.Event()
        want = tiny.outputs_NK[0]
        workers = [
            threading.Thread(target=load.work, args=(agent, tiny.input_for("tflite"), want, end))
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        try:
            eventually(lambda: load.ok.total() > 20)
            assert agent.stop() == 0
        finally:
            end.set()
            for worker in workers:
                worker.join(60)
        assert set(load.refused) <= {UNAVAILABLE, grpc.StatusCode.CANCELLED} and not load.wrong

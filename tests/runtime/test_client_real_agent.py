"""The clients and a real agent: push, load, infer, profile, remove."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from agent_tools import Agent, eventually, running_agent

from runtime.client import AgentClient, AgentFault, AsyncAgentClient
from runtime.digest import sha256_tree
from runtime.sessions import open_session


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent") / "store") as running:
        yield running


def test_from_push_to_removal(agent, tiny, tiny_bundle):
    digest = sha256_tree(tiny_bundle)
    with AgentClient(agent.address) as client:
        assert client.upload(tiny_bundle, "net") == digest
        assert client.upload_status(digest).complete
        client.load("net", threads=1)
        client.load("net/onnx", threads=1, instances=2)
        assert client.model_ready("net") and client.health("net") == "SERVING"
        states = {model.name: model.state for model in client.index()}
        assert states["net"] == states["net/onnx"] == "READY"
        for name, target in (("net", "tflite"), ("net/onnx", "onnx")):
            x = tiny.input_for(target, 1)
            found = client.infer(name, x)
            session = open_session(tiny.paths[target])
            np.testing.assert_allclose(found.output, session.run(x), atol=1e-5)
            session.close()
            assert found.version == digest[:12] and found.parameters["bundle_digest"] == digest
            assert found.parameters["target"] == target
            assert set(found.timings) == {
                "queue_us", "decode_us", "compute_us", "encode_us", "total_us",
            }  # fmt: skip
            assert found.timings["total_us"] >= found.timings["compute_us"] > 0
            (spec,) = client.model_metadata(name).inputs
            assert spec.dtype == "float32" and len(spec.shape) == 4
        with pytest.raises(AgentFault, match="loaded") as caught:
            client.remove("net")
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(AgentFault, match="net") as caught:
            client.infer("nett", x)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        with pytest.raises(AgentFault, match="expected shape") as caught:
            client.infer("net", x[:, :4])
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        client.unload("net")
        client.unload("net/onnx")
        assert client.remove("net") > 0
        assert not client.upload_status(digest).complete


def test_profile_there_and_another_name(agent, tiny_bundle):
    async def work() -> None:
        told: list[tuple[str, float]] = []
        async with AsyncAgentClient(agent.address) as client:
            digest = await client.upload(tiny_bundle)
            record = await client.profile(
                digest, ["onnx"], runs=20, min_time_s=0.01,
                progress=lambda text, done: told.append((text, done)),
            )  # fmt: skip
            assert [m.target for m in record.measurements] == ["onnx"]
            assert record.measurements[0].latency.n >= 20
            assert told and told[-1][1] == 1.0
            sent: list[tuple[int, int]] = []
            await client.upload(tiny_bundle, "second", lambda *now: sent.append(now))
            assert sent[0][0] == sent[0][1], "the name alone travels"
            assert (await client.upload_status(digest)).names == ["second", "tiny"]
            with pytest.raises(AgentFault) as caught:
                await client.profile(digest, ["coreml"])
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
            await client.remove(digest)

    asyncio.run(work())


def test_an_agent_that_ends_and_comes_back(tmp_path: Path, tiny, tiny_bundle):
    """infer goes on where the agent starts again on its port; nothing has to be said to it."""
    store = tmp_path / "store"
    with running_agent(store, load=[tiny_bundle]) as first:
        address = first.address
        client = AgentClient(address)
        x = tiny.input_for("tflite")
        before = client.infer("tiny", x).output
    with pytest.raises(AgentFault) as caught:
        client.infer("tiny", x)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    with running_agent(store, listen=address):

        def answered() -> bool:
            try:
                return bool((client.infer("tiny", x).output == before).all())
            except AgentFault:
                return False

        eventually(answered, 30)
        assert client.describe().generation == 2
        client.close()

"""Workers that sense their input themselves: the coordinator sends a name, and no picture."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from agent_tools import Agent, ask, channel_to, eventually, refusal
from coordinator_tools import (
    MODEL,
    SIDE,
    Answer,
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

from partition.learning.fusion import without
from runtime.client import AgentClient, AgentFault, AsyncAgentClient
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import message
from runtime.wire.input_ref import put_input_ref

LAYOUTS = ("NCHW", "NHWC", "NCHW")
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
NO_ANSWER = "worker cannot answer to its input"


@dataclass
class Cluster:
    """Three agents, each with a folder of what it senses."""

    plan: TinyPlan
    agents: list[Agent]
    coordinator: Coordinator
    channel: Any
    folders: list[Path]

    def show(self, index: int, x_BHWC: np.ndarray, name: str = "camera", age_s: float = 0) -> None:
        """Let one device see a picture, in its artefact's layout."""
        x = x_BHWC if LAYOUTS[index] == "NHWC" else x_BHWC.transpose(0, 3, 1, 2)
        new = self.folders[index] / f"{name}.new"
        with new.open("wb") as file:
            np.save(file, np.ascontiguousarray(x))
        os.utime(new, (time.time() - age_s,) * 2)
        new.rename(self.folders[index] / f"{name}.npy")

    def workers(self) -> dict[str, dict[str, Any]]:
        return json.loads(ask(self.channel, "ModelMetadata", name=MODEL).properties["workers"])


@contextmanager
def sensing(home: Path, plan: TinyPlan, *flags: object, **more: Any) -> Iterator[Cluster]:
    folders = [home / f"inputs-{i}" for i in range(3)]
    for folder in folders:
        folder.mkdir()
    with (
        agents_of(plan, home, inputs=folders, **more) as agents,
        coordinating(plan, addresses_of(agents), *flags) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        yield Cluster(plan, agents, coordinator, channel, folders)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("sensing")
    plan = write_plan(home / "plan")
    with sensing(home, plan, "--metrics", "127.0.0.1:0") as up:
        yield up


def named(name: str = "camera", **fields: Any) -> Any:
    request = message("inference.ModelInferRequest")(model_name=MODEL, **fields)
    put_input_ref(request, name)
    return request


def sense(channel: Any, name: str = "camera") -> Answer:
    return answer_of(ask(channel, "ModelInfer", named(name)))


def truth(plan: TinyPlan, seen_BHWC: Sequence[np.ndarray], lost: Sequence[int] = ()) -> np.ndarray:
    """The logits where sub-model i saw picture i, by torch."""
    with torch.no_grad():
        parts = zip(plan.parts, seen_BHWC, strict=True)
        blocks = torch.cat([part.features(x) for part, x in parts], 1)
        return plan.fusion(without(blocks, plan.fusion.widths, lost)).numpy()


def test_the_same_picture_gives_the_same_bits_as_one_that_is_sent(cluster: Cluster) -> None:
    for seed in range(5):
        x = pictures(1, seed)
        for index in range(3):
            cluster.show(index, x)
        sent, sensed = predict(cluster.channel, x), sense(cluster.channel)
        assert np.array_equal(sent.logits, sensed.logits)
        assert is_right(cluster.plan, x, sensed)
        assert (sent.parameters["mode"], sensed.parameters["mode"]) == ("broadcast", "local-input")
        assert "input_age_us" not in sent.parameters
        assert sensed.parameters["batch_size"] == 1


def test_each_worker_answers_for_what_it_sees(cluster: Cluster) -> None:
    seen = [pictures(1, seed) for seed in (11, 12, 13)]
    for index, x in enumerate(seen):
        cluster.show(index, x)
    answer = sense(cluster.channel)
    assert answer.missing == []
    np.testing.assert_allclose(answer.logits, truth(cluster.plan, seen), rtol=1e-4, atol=1e-4)
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            other = truth(cluster.plan, [seen[i] for i in order])
            assert not np.allclose(answer.logits, other, rtol=1e-4, atol=1e-4)


def test_the_answer_tells_how_old_its_inputs_are(cluster: Cluster) -> None:
    for index, age_s in enumerate((2, 9, 5)):
        cluster.show(index, pictures(1), age_s=age_s)
    told = sense(cluster.channel).parameters
    assert 9e6 <= told["input_age_us"] < 40e6
    assert 6.5e6 < told["input_spread_us"] < 37e6
    gap = told["total_us"] - sum(told[stage] for stage in (
        "decode_us", "queue_us", "network_us", "worker_queue_us", "compute_us", "wait_us",
        "fuse_us",
    ))  # fmt: skip
    assert abs(gap) < 0.2 * told["total_us"]


def test_a_worker_without_its_input_is_left_out_and_stays_in(cluster: Cluster) -> None:
    name = "one-lacks-it"
    x = pictures(1, 21)
    cluster.show(0, x, name)
    cluster.show(2, x, name)
    before = cluster.workers()
    for _ in range(20):
        answer = sense(cluster.channel, name)
        assert answer.missing == [1]
        assert is_right(cluster.plan, x, answer)
        why = json.loads(answer.parameters["missing_reasons"])
        assert list(why) == ["sub1"] and f"no {name}.npy in this agent's --inputs" in why["sub1"]
        assert predict(cluster.channel, x).missing == []
    after = cluster.workers()
    for worker, facts in after.items():
        assert facts["usable"] and facts["generation"] == before[worker]["generation"]
    assert cluster.coordinator.events("worker is out") == []
    noted = [e for e in cluster.coordinator.events(NO_ANSWER) if f"no {name}.npy" in e["reason"]]
    assert len(noted) <= 3, "a line for every request"
    cluster.show(1, x, name)
    assert sense(cluster.channel, name).missing == []


def test_files_that_do_not_fit_are_left_out_too(cluster: Cluster) -> None:
    name, x = "bad", pictures(1, 22)
    for index in range(3):
        cluster.show(index, x, name)
    path = cluster.folders[2] / f"{name}.npy"
    for data, words in (
        (b"no array", "no .npy file"),
        (b"", "no .npy file"),
        (path.read_bytes()[:-1], "a part of it"),
    ):
        path.write_bytes(data)
        answer = sense(cluster.channel, name)
        assert answer.missing == [2] and words in answer.parameters["missing_reasons"]
        assert is_right(cluster.plan, x, answer)
    with path.open("wb") as file:
        np.save(file, np.full((1, 3, SIDE, SIDE), np.nan, np.float32))
    assert "NaN" in sense(cluster.channel, name).parameters["missing_reasons"]
    assert cluster.coordinator.events("worker is out") == []


def test_where_all_lack_it_the_error_says_so(cluster: Cluster) -> None:
    code, text = refusal(lambda: sense(cluster.channel, "nowhere"))
    assert code is NOT_FOUND
    for submodel in ("sub0", "sub1", "sub2"):
        assert f"{submodel}: no nowhere.npy in this agent's --inputs" in text
    (cluster.folders[0] / "mixed.npy").write_bytes(b"no array")
    code, text = refusal(lambda: sense(cluster.channel, "mixed"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "no .npy file" in text
    assert all(facts["usable"] for facts in cluster.workers().values())
    assert predict(cluster.channel, pictures(1)).missing == []


def test_requests_that_make_no_sense_are_refused(cluster: Cluster) -> None:
    both = request_of(pictures(1))
    put_input_ref(both, "camera")
    number = named()
    number.parameters["input_ref"].int64_param = 7
    neither = message("inference.ModelInferRequest")(model_name=MODEL)
    for request, words in (
        (both, "send one of them"),
        (number, "expected a string"),
        (named("../store-0/model"), "expected a string"),
        (neither, "expected the inputs"),
        (named(model_version="0123"), "has the version"),
    ):
        code, text = refusal(lambda request=request: ask(cluster.channel, "ModelInfer", request))
        assert code in (INVALID, NOT_FOUND) and words in text, text


def test_the_clients_ask_by_name(cluster: Cluster) -> None:
    x = pictures(1, 31)
    for index in range(3):
        cluster.show(index, x)
    expected = sense(cluster.channel).logits
    with AgentClient(cluster.coordinator.address) as client:
        answer = client.infer(MODEL, input_ref="camera")
        assert np.array_equal(answer.output, expected)
        assert answer.parameters["mode"] == "local-input"
        with pytest.raises(AgentFault, match=r"no nowhere\.npy") as caught:
            client.infer(MODEL, input_ref="nowhere")
        assert caught.value.code is NOT_FOUND
        for wrong in ({}, {"x": x, "input_ref": "camera"}):
            with pytest.raises(RuntimeFault, match="either an input or input_ref"):
                client.infer(MODEL, **wrong)

    async def work() -> None:
        async with AsyncAgentClient(cluster.coordinator.address) as client:
            answer = await client.infer(MODEL, input_ref="camera")
            assert np.array_equal(answer.output, expected)

    asyncio.run(work())


def test_the_metadata_tell_of_the_workers(cluster: Cluster) -> None:
    predict(cluster.channel, pictures(1))
    workers = cluster.workers()
    assert list(workers) == ["sub0@pi-0", "sub1@pi-1", "sub2@pi-2"]
    for name, facts in workers.items():
        assert facts["usable"] and facts["reason"] == ""
        assert facts["generation"] == 1 and facts["model"] == name.partition("@")[0]
        assert 0 < facts["p50_us"] < 5e6
        assert 0 <= facts["last_heard_s"] < 5


def test_a_picture_that_is_no_numbers_sends_no_worker_away(cluster: Cluster) -> None:
    """Neither what is sent with NaN, nor what overflows in the network."""
    bad = pictures(1)
    bad[0, 3, 4, 1] = np.nan
    code, text = refusal(lambda: predict(cluster.channel, bad))
    assert code is INVALID and "NaN or infinity" in text
    code, text = refusal(lambda: predict(cluster.channel, np.full_like(bad, 3e38)))
    assert code is INVALID and "sub1: it answers with NaN or infinity" in text
    assert predict(cluster.channel, pictures(1)).missing == []
    assert cluster.coordinator.events("worker is out") == []


def test_a_picture_that_is_replaced_is_never_torn(tmp_path: Path) -> None:
    """2,000 requests while all three devices get one of two pictures, as fast as can be."""
    side = 64
    plan = write_plan(tmp_path / "plan", side=side)
    both = [np.zeros((1, side, side, 3), np.float32), pictures(1, 41, side)]
    whole = [truth(plan, seen) for seen in itertools.product(both, repeat=3)]
    torn = both[0].copy()
    torn[:, side // 2 :] = both[1][:, side // 2 :]
    over = threading.Event()
    seen = set()

    def known(logits: np.ndarray) -> int | None:
        near = [i for i, y in enumerate(whole) if np.allclose(logits, y, rtol=1e-4, atol=1e-4)]
        return near[0] if near else None

    with sensing(tmp_path, plan) as up:

        def write() -> None:
            for turn in itertools.count():
                for index in range(3):
                    up.show(index, both[turn % 2])
                if over.is_set():
                    return

        def work(_: int) -> None:
            with channel_to(up.coordinator.address) as channel:
                for _ in range(500):
                    answer = sense(channel)
                    found = known(answer.logits)
                    assert answer.missing == [] and found is not None
                    seen.add(found)

        for index in range(3):
            up.show(index, torn)
        assert known(sense(up.channel).logits) is None  # so a torn one would be seen
        for index in range(3):
            up.show(index, both[0])
        writer = threading.Thread(target=write)
        writer.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(work, range(4)))
        finally:
            over.set()
            writer.join(60)
        assert {0, 7} <= seen
        assert up.coordinator.events("worker is out") == []


def test_names_do_not_go_together_with_pictures(tmp_path: Path) -> None:
    """Where pictures of several requests are asked for together."""
    plan = write_plan(tmp_path / "plan", rows="rows")
    with sensing(tmp_path, plan) as up:
        shown = pictures(1, 51)
        for index in range(3):
            up.show(index, shown)

        def work(number: int) -> tuple[np.ndarray, Answer]:
            with channel_to(up.coordinator.address) as channel:
                if number % 3 == 0:
                    return shown, sense(channel)
                x = pictures(1 + number % 2, number)
                return x, predict(channel, x)

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(work, range(240)))
        assert all(is_right(plan, x, answer) for x, answer in answers)
        by_mode = {
            mode: {a.parameters["batch_size"] for _, a in answers if a.parameters["mode"] == mode}
            for mode in ("broadcast", "local-input")
        }
        assert by_mode["local-input"] == {1}
        assert max(by_mode["broadcast"]) > 1


def test_a_replica_sees_with_its_own_eyes(tmp_path: Path) -> None:
    """Where the first place has no input, the next is asked at once."""
    plan = write_plan(tmp_path / "plan", layouts=LAYOUTS, replicas=(("pi-2",), (), ()))
    with sensing(tmp_path, plan, loads=((0,), (1,), (2, 0))) as up:
        seen = [pictures(1, seed) for seed in (61, 62, 63)]
        up.show(1, seen[1])
        up.show(2, seen[2])
        answer = sense(up.channel)
        assert answer.missing == []
        by_replica = truth(plan, [seen[2], seen[1], seen[2]])
        np.testing.assert_allclose(answer.logits, by_replica, rtol=1e-4, atol=1e-4)
        up.show(0, seen[0])
        eventually(lambda: np.allclose(sense(up.channel).logits, truth(plan, seen), atol=1e-4))

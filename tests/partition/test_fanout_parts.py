"""The parts of the fan-out by themselves: bytes, times, turns, and what an answer has to be."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from coordinator_tools import CLASSES, DEVICES, SIDE, pictures, write_bundle, write_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from partition.errors import PartitionError
from partition.plan import read_plan
from partition.serving.ensemble import ensemble_of
from partition.serving.fanout import Gathered
from partition.serving.fuse import Fused
from partition.serving.recent import ENOUGH, KEPT, RecentTimes
from partition.serving.request_bytes import PictureBytes, request_head
from partition.serving.turns import Turns
from partition.serving.worker_reply import BadInput, StrangeReply, read_reply
from runtime.client.channel import Access
from runtime.sessions.base import Array
from runtime.tensor_spec import TensorSpec
from runtime.wire.descriptors import message
from runtime.wire.refused import Refused, unavailable
from runtime.wire.tensors import decode, put_output

ACCESSES = {name: Access("127.0.0.1:1") for name in DEVICES[:3]}


@given(rows=st.integers(1, 5), side=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_request_by_hand_is_one_of_protobuf(rows: int, side: int) -> None:
    """Sizes from a few bytes to several varint bytes; both layouts."""
    x_BHWC = pictures(rows, side=side)
    came = TensorSpec("image", [-1, side, side, 3], "float32", "NHWC")
    bytes_ = PictureBytes(x_BHWC, came)
    for layout, expected in (("NHWC", x_BHWC), ("NCHW", x_BHWC.transpose(0, 3, 1, 2))):
        wanted = TensorSpec("x", [-1, *expected.shape[1:]], "float32", layout)  # type: ignore[arg-type]
        data = bytes_.request(request_head("a-model", "0123"), wanted)
        request = message("inference.ModelInferRequest").FromString(data)
        assert (request.model_name, request.model_version) == ("a-model", "0123")
        (got,) = decode(request, [wanted])
        assert np.array_equal(got, expected)


def test_percentiles_of_recent_times() -> None:
    times = RecentTimes()
    for value in range(ENOUGH - 1):
        times.add(value)
        assert times.percentile(0.95) is None
    draw = np.random.default_rng(0)
    added = list(range(ENOUGH - 1))
    for _ in range(3 * KEPT):
        value = float(draw.random())
        times.add(value)
        added.append(value)
        window = sorted(added[-KEPT:])
        got = times.percentile(0.95)
        assert got == window[int(0.95 * len(window))]
    assert times.percentile(1.0) == max(added[-KEPT:])


def test_which_classes_nobody_sees(tmp_path: Path) -> None:
    ensemble = ensemble_of(read_plan(write_plan(tmp_path / "plan").path), ACCESSES)
    assert ensemble.blind([]) == []
    assert ensemble.blind(["sub1"]) == sorted(CLASSES[1])
    assert ensemble.blind(["sub2", "sub0"]) == sorted(CLASSES[0] + CLASSES[2])
    plan = write_plan(tmp_path / "shared", layouts=("NCHW",) * 4)  # sub3 knows 0 and 1 as well
    shared = ensemble_of(read_plan(plan.path), ACCESSES | {"pi-3": Access("127.0.0.1:1")})
    assert shared.blind(["sub0"]) == [3]
    assert shared.blind(["sub3"]) == []
    assert shared.blind(["sub0", "sub3"]) == [0, 3]


def test_a_device_without_an_address_is_named(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "plan").path)
    with pytest.raises(PartitionError, match="pi-2 has no address"):
        ensemble_of(plan, {name: ACCESSES[name] for name in DEVICES[:2]})


def test_bundles_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    shutil.rmtree(plan.bundle(1))
    write_bundle(plan.bundle(1), plan.parts[1], side=2 * SIDE)
    with pytest.raises(PartitionError, match="not the same pictures"):
        ensemble_of(read_plan(plan.path), ACCESSES)
    manifest = plan.bundle(2) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"onnx": {', '"tflite": {'))
    with pytest.raises(
        PartitionError, match="pi-2 serves onnx, and the bundle of sub2 has: tflite"
    ):
        ensemble_of(read_plan(plan.path), ACCESSES)


def test_what_a_worker_may_not_answer() -> None:
    def answer(digest: str = "d", x: Array | None = None, twice: bool = False) -> object:
        response = message("inference.ModelInferResponse")()
        for name in ("y", "z") if twice else ("y",):
            put_output(response, name, np.ones((2, 3), np.float32) if x is None else x)
        response.parameters["bundle_digest"].string_param = digest
        response.parameters["total_us"].int64_param = 70
        response.parameters["compute_us"].int64_param = 50
        return response

    reply = read_reply(answer(), "d", 2, 3, "pi", 100)
    assert (reply.block.shape, reply.worker_us, reply.compute_us) == ((2, 3), 70, 50)
    bad = np.ones((2, 3), np.float32)
    bad[1, 1] = np.nan
    for response, words in (
        (answer("e"), "the bundle e, not d"),
        (answer(x=np.ones((2, 4), np.float32)), "expected 2 x 3 numbers"),
        (answer(x=np.ones((2, 3))), "expected 2 x 3 numbers of float32"),
        (answer(twice=True), "expected 2 x 3 numbers"),
    ):
        with pytest.raises(StrangeReply, match=words):
            read_reply(response, "d", 2, 3, "pi", 100)
    with pytest.raises(BadInput, match="NaN"):  # of the picture perhaps, not of the worker
        read_reply(answer(x=bad), "d", 2, 3, "pi", 100)


class Echo:
    """Answers with the mean of each picture; remembers what it was asked, and waits for `go`."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float | None]] = []
        self.cancelled = 0
        self.go = asyncio.Event()

    async def run(self, x: Array, timeout_s: float | None) -> Fused:
        self.asked.append((len(x), timeout_s))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if np.isnan(x).any():
            raise unavailable("nobody is there")
        return Fused(x.mean((1, 2, 3))[:, None], Gathered(x, {}, {}, 0), 0)


def run(work: object) -> None:
    asyncio.run(asyncio.wait_for(work, 30))  # type: ignore[arg-type]


def test_what_waits_together_goes_together() -> None:
    async def main() -> None:
        echo = Echo()
        turns = Turns(echo.run, most=8, patience_s=5.0)
        x = [pictures(1 + i % 3, i) for i in range(12)]
        waiting = [asyncio.create_task(turns.take(each, None)) for each in x]
        await asyncio.sleep(0.05)
        assert [rows for rows, _ in echo.asked] == [1, 2]  # two at once; the others wait
        echo.go.set()
        for each, turn in zip(x, await asyncio.gather(*waiting), strict=True):
            got = turn.fused.logits[turn.first : turn.first + turn.rows]
            assert np.allclose(got[:, 0], each.mean((1, 2, 3)))
        assert max(rows for rows, _ in echo.asked) > 3
        assert all(rows <= 8 for rows, _ in echo.asked)
        assert sum(rows for rows, _ in echo.asked) == sum(len(each) for each in x)

    run(main())


def test_who_is_in_a_hurry_goes_alone() -> None:
    """A batch ends with its earliest deadline, which must not cost the others their answers."""

    async def main() -> None:
        echo = Echo()
        turns = Turns(echo.run, most=8, patience_s=5.0)
        patient = [asyncio.create_task(turns.take(pictures(1), 60.0)) for _ in range(4)]
        hurried = asyncio.create_task(turns.take(pictures(1), 1.0))
        after = [asyncio.create_task(turns.take(pictures(1), None)) for _ in range(2)]
        await asyncio.sleep(0.02)
        echo.go.set()
        await asyncio.gather(*patient, hurried, *after)
        assert [rows for rows, _ in echo.asked] == [1, 1, 2, 1, 2]
        timeout_s = echo.asked[3][1]
        assert timeout_s is not None and 0 < timeout_s <= 1.0
        assert all(t is None or t > 50 for i, (_, t) in enumerate(echo.asked) if i != 3)

    run(main())


def test_a_caller_who_goes_leaves_nothing_behind() -> None:
    async def main() -> None:
        echo = Echo()
        turns = Turns(echo.run, most=1, patience_s=5.0, limit=3)
        running = [asyncio.create_task(turns.take(pictures(1), None)) for _ in range(32)]
        await asyncio.sleep(0.02)
        queued = [asyncio.create_task(turns.take(pictures(1), None)) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert len(turns) == 3
        with pytest.raises(Refused, match="3 requests wait already") as refused:
            await turns.take(pictures(1), None)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        queued[1].cancel()
        running[0].cancel()
        await asyncio.sleep(0.02)
        assert echo.cancelled == 1
        assert len(echo.asked) == 33  # the first that waited took its place
        echo.go.set()
        await asyncio.gather(*running[1:], queued[0], queued[2])
        assert len(echo.asked) == 34
        assert len(turns) == 0

    run(main())


def test_a_fault_is_of_its_own_run() -> None:
    async def main() -> None:
        echo = Echo()
        echo.go.set()
        turns = Turns(echo.run, most=1, patience_s=5.0)
        bad = np.full((1, SIDE, SIDE, 3), np.nan, np.float32)
        results = await asyncio.gather(
            turns.take(pictures(1), None), turns.take(bad, None), turns.take(pictures(1), None),
            return_exceptions=True,
        )  # fmt: skip
        assert [isinstance(result, Refused) for result in results] == [False, True, False]

    run(main())

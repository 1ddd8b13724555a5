"""Which requests run together: the queue by itself, then with a real engine behind it."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import numpy as np
import pytest
from engine_tools import bundle_with, doubling, highest, picky, run, until

from runtime.bundle import read_bundle
from runtime.digest import sha256_tree
from runtime.serving.batching import BatchQueue, Waiting
from runtime.serving.model import ModelSettings, ServedModel
from runtime.wire.refused import Refused

LONG_MS = 3_600_000.0
CODE = grpc.StatusCode


class Batches:
    """An observer that keeps the sizes of batches."""

    def __init__(self):
        self.sizes = []

    def request(self, model, target, status, timings, total_us):
        raise AssertionError("the inference service tells of requests")

    def batch(self, model, size):
        self.sizes.append(size)

    def restart(self, model, reason):
        raise AssertionError(reason)


def asked(rows: int = 1, **more) -> Waiting:
    return Waiting(np.zeros((rows, 1)), rows, None, **more)


def filled(*rows: int, **settings) -> tuple[BatchQueue, list[Waiting]]:
    queue = BatchQueue(64, **settings)
    requests = [asked(n) for n in rows]
    for request in requests:
        queue.put(request)
    return queue, requests


def test_first_in_first_out_one_at_a_time_by_default():
    queue, (a, b) = filled(1, 1)
    assert [queue.take(), queue.take(), queue.take()] == [[a], [b], []]


def test_the_queue_is_bounded():
    queue = BatchQueue(2)
    queue.put(asked())
    queue.put(asked())
    with pytest.raises(Refused, match="2 requests wait already") as caught:
        queue.put(asked())
    assert caught.value.code == CODE.RESOURCE_EXHAUSTED and len(queue) == 2


def test_a_batch_holds_as_many_rows_as_fit():
    queue, (a, b, c, d) = filled(3, 2, 4, 1, most=5)
    assert queue.take() == [a, b]
    assert queue.take() == [c, d]


def test_order_is_kept_where_a_later_one_would_fit():
    queue, (a, b, c) = filled(3, 4, 1, most=5)
    assert queue.take() == [a]
    assert queue.take() == [b, c]


def test_a_lone_request_does_not_wait_for_company():
    queue, (a,) = filled(1, most=8, wait_ms=LONG_MS)
    assert queue.take() == [a]
    b = asked()
    queue.put(b)
    assert queue.take() == [b]


def test_in_a_crowd_a_batch_waits_until_it_is_full():
    queue, _ = filled(1, 1, 1, most=3, wait_ms=LONG_MS)
    assert len(queue.take()) == 3
    for expected in (0, 0, 3):
        queue.put(asked())
        assert len(queue.take()) == expected


def test_in_a_crowd_a_batch_waits_no_longer_than_the_first_may():
    queue, (a, b) = filled(1, 1, most=3, wait_ms=LONG_MS)
    assert queue.take() == [] and 3500 < queue.ready_in_s() <= 3600
    queue.wait_ms = 0.0
    assert queue.ready_in_s() == 0 and queue.take() == [a, b]


def test_one_that_cannot_be_joined_sends_the_batch_off():
    queue, (a, b, c) = filled(1, 1, 2, most=3, wait_ms=LONG_MS)
    assert queue.take() == [a, b]
    assert queue.take() == [] and len(queue) == 1 and c in queue.clear()


def test_alone_means_alone():
    queue, (a, b, c) = filled(1, 1, 1, most=8)
    b.alone = True
    assert [queue.take(), queue.take(), queue.take()] == [[a], [b], [c]]


def test_leaving_and_coming_back():
    queue, (a, b, c) = filled(1, 1, 1)
    queue.leave(b)
    queue.leave(b)
    assert queue.take() == [a]
    queue.put_back([a, b])
    assert len(queue) == 3 and queue.clear() == [a, b, c] and queue.ready_in_s() == 0


@pytest.fixture
def serve(make_bundle, tmp_path):
    """A served model of an .onnx file, for one coroutine that gets it."""

    def with_model(artifact, work, observe=None, **settings):
        folder = bundle_with(make_bundle("onnx"), artifact)
        settings = {"batch_wait_ms": 0.0, **settings}

        async def whole():
            model = ServedModel(
                "m", read_bundle(folder), sha256_tree(folder), "onnx", ModelSettings(**settings),
                **({"observe": observe} if observe else {}),
            )  # fmt: skip
            await model.start()
            try:
                return await work(model)
            finally:
                await model.close()

        return run(whole())

    return with_model


class Held:
    """A model whose engine is stopped inside the block: what comes meanwhile has to wait."""

    def __init__(self, model):
        (self.pid,) = model.worker_pids()

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *error):
        os.kill(self.pid, signal.SIGCONT)


async def while_held(model, first, others):
    """Answers of `first`, which occupies the engine, and `others`, which come meanwhile."""
    with Held(model):
        tasks = [asyncio.ensure_future(model.infer([first]))]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(model.infer([x])) for x in others]
        await until(lambda: model.queued == len(others))
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_waiting_requests_run_together(serve, tmp_path):
    batches = Batches()
    xs = [np.full((n, 2), i, np.float32) for i, n in enumerate((1, 2, 1, 3, 2))]

    async def work(model):
        assert model.inputs[0].shape == [-1, 2] and model.outputs[0].shape == [-1, 2]
        return await while_held(model, xs[0], xs[1:])

    answers = serve(doubling(tmp_path / "any.onnx"), work, batches, max_batch=6)
    for x, answer in zip(xs, answers, strict=True):
        assert np.array_equal(answer.outputs[0], 2 * x)
    assert [a.timings.batch_size for a in answers] == [1, 3, 3, 3, 1]
    assert batches.sizes == [1, 3, 1]


def test_a_fixed_batch_takes_smaller_requests(serve, tmp_path):
    xs = [np.full((n, 2), n + 1, np.float32) for n in (4, 1, 1, 2, 3)]

    async def work(model):
        assert model.inputs[0].shape == [-1, 2]
        with pytest.raises(Refused, match="at most 4 rows in a request, got 5") as caught:
            await model.infer([np.zeros((5, 2), np.float32)])
        assert caught.value.code == CODE.INVALID_ARGUMENT
        return await while_held(model, xs[0], xs[1:])

    answers = serve(doubling(tmp_path / "four.onnx", batch=4), work)
    for x, answer in zip(xs, answers, strict=True):
        assert np.array_equal(answer.outputs[0], 2 * x)
    assert [a.timings.batch_size for a in answers] == [1, 3, 3, 3, 1]


def test_a_fixed_batch_of_one_is_run_one_by_one(serve, tmp_path):
    xs = [np.full((1, 2), i, np.float32) for i in range(4)]

    async def work(model):
        assert model.inputs[0].shape == [1, 2]
        return await while_held(model, xs[0], xs[1:])

    answers = serve(doubling(tmp_path / "one.onnx", batch=1), work, batch_wait_ms=LONG_MS)
    assert [a.outputs[0][0, 0] for a in answers] == [0, 2, 4, 6]
    assert {a.timings.batch_size for a in answers} == {1}


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_that_is_one_question_is_not_joined(serve, tmp_path, isolate):
    xs = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) for n in (1, 4, 2)]

    async def work(model):
        assert (model.inputs[0].shape, model.outputs[0].shape) == ([-1, 2], [1, 2])
        with pytest.raises(Refused, match="at most 4 rows in a request, got 5"):
            await model.infer([np.zeros((5, 2), np.float32)])
        return await asyncio.gather(*(model.infer([x]) for x in xs))

    answers = serve(highest(tmp_path / "max.onnx"), work, max_batch=4, isolate=isolate)
    assert [a.outputs[0].tolist() for a in answers] == [[[0, 1]], [[6, 7]], [[2, 3]]]
    assert {a.timings.batch_size for a in answers} == {1}


def test_a_bad_request_does_not_harm_its_neighbours(serve, tmp_path):
    xs = [np.array([[n]]) for n in (0, 1, 9, 2, 3)]

    async def work(model):
        return await while_held(model, xs[0], xs[1:])

    first, one, bad, two, three = serve(picky(tmp_path / "picky.onnx"), work)
    assert [a.outputs[0].item() for a in (first, one, two, three)] == [0, 10, 20, 30]
    assert isinstance(bad, Refused) and bad.code == CODE.INTERNAL
    assert "out of data bounds" in str(bad)


def test_a_cancelled_request_leaves_its_batch(serve, tmp_path):
    x = np.ones((1, 2), np.float32)

    async def work(model):
        with Held(model):
            tasks = [asyncio.ensure_future(model.infer([x * i])) for i in range(4)]
            await until(lambda: model.queued == 3)
            tasks[2].cancel()
            await until(lambda: model.queued == 2)
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, one, gone, three = serve(doubling(tmp_path / "any.onnx"), work)
    assert isinstance(gone, asyncio.CancelledError)
    assert (one.timings.batch_size, three.timings.batch_size) == (2, 2)
    assert [a.outputs[0][0, 0] for a in (first, one, three)] == [0, 2, 6]


def test_a_crowd_is_waited_for_but_not_for_ever(serve, tmp_path):
    """Two that come together after a crowd find the engine idle; nobody else comes."""
    x = np.ones((1, 2), np.float32)

    async def work(model):
        await while_held(model, x, [x, x])
        return await asyncio.gather(model.infer([x]), model.infer([x]))

    answers = serve(doubling(tmp_path / "any.onnx"), work, batch_wait_ms=20.0)
    assert [a.timings.batch_size for a in answers] == [2, 2]
    assert answers[0].timings.queue_us >= 19_000

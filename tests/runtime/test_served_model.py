"""A served model through the deaths of its engines; real processes, really killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import grpc
import numpy as np
import psutil
import pytest
from engine_tools import FOREVER, bundle_with, counting, gone, picky, run, until

from runtime.bundle import read_bundle
from runtime.digest import sha256_tree
from runtime.serving.batching import Waiting
from runtime.serving.breaker import Breaker
from runtime.serving.model import ModelSettings, ServedModel
from runtime.sessions import open_session
from runtime.wire.refused import Refused

CODE = grpc.StatusCode


class Restarts:
    """An observer that keeps the reasons of restarts."""

    def __init__(self):
        self.reasons = []

    def request(self, model, target, status, timings, total_us):
        raise AssertionError("the inference service tells of requests")

    def batch(self, model, size):
        assert size == 1

    def restart(self, model, reason):
        self.reasons.append(reason)


@pytest.fixture
def serve(make_bundle):
    """Run work(model) with a served model of the tiny network, or of `artifact`."""

    def with_model(work, *, target="onnx", artifact=None, **settings):
        folder = make_bundle("tflite", "onnx")
        if artifact is not None:
            bundle_with(folder, artifact)

        async def whole():
            restarts, states = Restarts(), []
            model = ServedModel(
                "m", read_bundle(folder), sha256_tree(folder), target, ModelSettings(**settings),
                restarts, lambda model: states.append(model.state),
            )  # fmt: skip
            model.restarts, model.states = restarts.reasons, states
            await model.start()
            try:
                return await work(model)
            finally:
                await model.close()

        return run(whole())

    return with_model


def number(n: float) -> list[np.ndarray]:
    return [np.full((1, 1), n, np.float32)]


@pytest.fixture
def count(tmp_path):
    return counting(tmp_path / "count.onnx")


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_answers_and_what_is_told(tiny, serve, target, isolate):
    async def work(model):
        assert len(model.worker_pids()) == (1 if isolate else 0)
        return model, [await model.infer([tiny.input_for(target, i)]) for i in range(4)]

    model, answers = serve(work, target=target, isolate=isolate)
    got = np.concatenate([answer.outputs[0] for answer in answers])
    assert np.abs(got - tiny.outputs_NK).max() < 1e-5 * np.ptp(tiny.outputs_NK, axis=0).max()
    session = open_session(tiny.paths[target])
    assert (model.engine, model.engine_version) == (session.engine, session.engine_version)
    assert model.inputs == [session.input] and model.outputs == [session.output]
    assert model.platform == f"edgevit_{session.engine}" and model.precision == "fp32"
    assert model.version == model.digest[:12] and len(model.digest) == 64
    assert model.properties["bundle_digest"] == model.digest
    assert model.properties["trained"] == "false" and model.properties["target"] == target
    assert json.loads(model.properties["preprocessing"])["height"] == 32
    timings = answers[0].timings
    assert timings.compute_us > 0 and timings.batch_size == 1
    assert model.states == ["READY", "UNAVAILABLE"]


def test_wrong_requests_are_refused_before_they_wait(tiny, serve):
    x = tiny.input_for("onnx")

    async def work(model):
        for inputs, why in (
            ([], "expected one input"),
            ([x, x], "expected one input"),
            ([x[:, 1:]], "expected shape"),
            ([x.astype(np.float64)], "expected dtype float32"),
        ):
            with pytest.raises(Refused, match=why) as caught:
                await model.infer(inputs)
            assert caught.value.code == CODE.INVALID_ARGUMENT
        return (await model.infer([x])).outputs[0].shape

    assert serve(work) == (1, 7)


def test_killed_while_idle_it_comes_back_by_itself(tiny, serve):
    async def work(model):
        (first,) = model.worker_pids()
        os.kill(first, signal.SIGKILL)
        await until(lambda: model.worker_pids() not in ([], [first]))
        answer = await model.infer([tiny.input_for("onnx")])
        return first, model.restarts, model.states, answer.outputs[0]

    first, restarts, states, y = serve(work)
    assert gone(first) and np.allclose(y, tiny.outputs_NK[:1], atol=1e-4)
    assert restarts == ["the engine process of tiny.onnx ended with signal SIGKILL"]
    assert states == ["READY", "LOADING", "READY", "UNAVAILABLE"]


def test_killed_in_a_run_the_request_is_refused_and_the_waiting_ones_are_answered(serve, count):
    async def work(model):
        running = asyncio.ensure_future(model.infer(number(FOREVER)))
        waiting = [asyncio.ensure_future(model.infer(number(n))) for n in (1, 2, 3)]
        await until(lambda: model.queued == 3)
        os.kill(model.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(Refused, match="ended with signal SIGKILL") as caught:
            await running
        answers = await asyncio.gather(*waiting)
        return caught.value.code, [answer.outputs[0].item() for answer in answers]

    assert serve(work, artifact=count) == (CODE.UNAVAILABLE, [1, 2, 3])


def test_killed_again_and_again_under_load(serve, count):
    """Every request is answered or refused with UNAVAILABLE; the right answer each time."""

    async def work(model):
        seen = {"answered": 0, "refused": 0}

        async def client(n):
            for k in range(40):
                try:
                    answer = await model.infer(number(100 * n + k))
                except Refused as error:
                    assert error.code == CODE.UNAVAILABLE and "SIGKILL" in str(error)
                    seen["refused"] += 1
                else:
                    assert answer.outputs[0].item() == 100 * n + k
                    seen["answered"] += 1

        clients = [asyncio.ensure_future(client(n)) for n in range(4)]
        for _ in range(3):
            await until(lambda: model.worker_pids() or all(c.done() for c in clients))
            for pid in model.worker_pids():
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)
        await asyncio.gather(*clients)
        return seen, model.restarts

    seen, restarts = serve(work, artifact=count)
    assert seen["answered"] + seen["refused"] == 160
    assert 1 <= len(restarts) <= 3 and seen["refused"] <= len(restarts)  # one in flight at a time


def test_after_five_deaths_it_stays_down(tiny, serve):
    x = tiny.input_for("onnx")

    async def work(model):
        for _ in range(5):
            await until(lambda: model.state == "READY")
            os.kill(model.worker_pids()[0], signal.SIGKILL)
            await until(lambda: model.state != "READY")
        with pytest.raises(Refused, match="ended 5 times within 120 s") as caught:
            await model.infer([x])
        return model.state, model.reason, model.worker_pids(), len(model.restarts), caught.value

    state, reason, pids, restarts, error = serve(work)
    assert state == "UNAVAILABLE" and "SIGKILL" in reason and "load the model again" in reason
    assert pids == [] and restarts == 4 and error.code == CODE.UNAVAILABLE


def test_deaths_long_apart_do_not_add_up():
    seldom, often = Breaker(deaths=3, seconds=0.0), Breaker(deaths=3, seconds=3600.0)
    for _ in range(6):
        assert seldom.count() == ""
        seldom.ran()
    assert [often.count() != "" for _ in range(4)] == [False, False, True, True]


def test_deaths_long_apart_add_up_where_nothing_runs_between():
    breaker = Breaker(deaths=3, seconds=0.0)
    assert [breaker.count() for _ in range(3)] == ["", "", "3 times without an answer between"]


def test_the_next_start_waits_longer_after_each_death():
    breaker = Breaker(deaths=9)
    pauses = [breaker.pause_s() for _ in range(7) if breaker.count() == ""]
    assert pauses[0] == 0 and pauses == sorted(pauses) and pauses[1] > 0 and pauses[-1] == 2.0
    breaker.ran()
    assert breaker.count() == "" and breaker.pause_s() == 0


def test_one_that_only_hangs_stays_down(serve, count):
    async def work(model):
        model._breaker = Breaker(deaths=3, seconds=0.0)
        assert (await model.infer(number(2))).outputs[0].item() == 2
        for _ in range(3):
            with pytest.raises(Refused, match="did not answer within"):
                await model.infer(number(FOREVER))
        await until(lambda: model.state == "UNAVAILABLE")
        return model.reason

    assert "3 times without an answer between" in serve(work, artifact=count, run_timeout_s=0.2)


def test_a_dead_engine_gets_no_work_before_its_end_is_told(serve, count):
    async def work(model):
        (engine,) = model._engines
        engine._hang_up()  # as when its socket ends; the model hears of it after the burial
        assert not engine.alive and model.worker_pids() == [engine.pid]
        return (await model.infer(number(3))).outputs[0].item()

    assert serve(work, artifact=count) == 3


def test_a_batch_that_fails_when_it_goes_down_is_refused(serve, tmp_path):
    async def work(model):
        loop = asyncio.get_running_loop()
        batch = [Waiting(np.array([[9]]), 1, loop.create_future()) for _ in range(2)]
        model._observe.batch = lambda name, size: None
        model._run(model._idle.pop(), batch)
        model._set("UNAVAILABLE", "its engine ended too often")
        errors = await asyncio.gather(*(b.answer for b in batch), return_exceptions=True)
        return [error.code for error in errors], model.queued

    codes, queued = serve(work, artifact=picky(tmp_path / "picky.onnx"))
    assert codes == [CODE.UNAVAILABLE] * 2 and queued == 0


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_what_starts_while_it_goes_down_is_ended(serve, count):
    async def work(model):
        model._breaker = Breaker(deaths=2)
        before = children()
        first, second = model.worker_pids()
        os.kill(first, signal.SIGKILL)
        await until(lambda: children() - before)
        (third,) = children() - before
        os.kill(third, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        await until(lambda: model.state == "UNAVAILABLE")
        os.kill(third, signal.SIGCONT)
        await until(lambda: gone(third))
        return model.worker_pids(), model.state

    assert serve(work, artifact=count, instances=2) == ([], "UNAVAILABLE")


def test_one_dies_while_another_does_not_load(make_bundle):
    bundle = read_bundle(make_bundle("onnx"))

    async def work():
        model = ServedModel("m", bundle, "0" * 64, "onnx", ModelSettings(instances=2))
        before = children()
        start = asyncio.ensure_future(model.start())
        await until(lambda: [e.pid for e in model._starting if e.pid] and len(model._starting) == 2)
        first, second = model._starting
        await until(lambda: second.pid)
        os.kill(second.pid, signal.SIGSTOP)
        await until(lambda: first.alive)
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: model._restarts)
        os.kill(second.pid, signal.SIGKILL)
        with pytest.raises(Refused, match="SIGKILL"):
            await start
        return model.state, model.worker_pids(), len(model._restarts), children() - before

    assert run(work()) == ("UNAVAILABLE", [], 0, set())


def test_those_that_wait_are_refused_when_it_stays_down(serve, count):
    async def work(model):
        for _ in range(4):
            os.kill(model.worker_pids()[0], signal.SIGKILL)
            await until(lambda: model.state != "READY")
            await until(lambda: model.state == "READY")
        tasks = [asyncio.ensure_future(model.infer(number(n))) for n in (FOREVER, 1, 2)]
        await until(lambda: model.queued == 2)
        os.kill(model.worker_pids()[0], signal.SIGKILL)
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = serve(work, artifact=count)
    assert [error.code for error in errors] == [CODE.UNAVAILABLE] * 3


def test_a_hung_engine_is_replaced(serve, count):
    async def work(model):
        (first,) = model.worker_pids()
        with pytest.raises(Refused, match="did not answer within") as caught:
            await model.infer(number(FOREVER))
        answer = await model.infer(number(7))
        return first, caught.value.code, answer.outputs[0].item()

    first, code, y = serve(work, artifact=count, run_timeout_s=0.4)
    assert gone(first) and (code, y) == (CODE.DEADLINE_EXCEEDED, 7)


def test_a_full_queue_refuses_at_once(serve, count):
    async def work(model):
        tasks = [asyncio.ensure_future(model.infer(number(n))) for n in (FOREVER, 1, 2)]
        await until(lambda: model.queued == 2)
        with pytest.raises(Refused, match="2 requests wait already") as caught:
            await model.infer(number(3))
        os.kill(model.worker_pids()[0], signal.SIGKILL)
        return caught.value.code, await asyncio.gather(*tasks, return_exceptions=True)

    code, (died, *answers) = serve(work, artifact=count, queue=2)
    assert code == CODE.RESOURCE_EXHAUSTED and isinstance(died, Refused)
    assert [answer.outputs[0].item() for answer in answers] == [1, 2]


def test_a_request_past_its_deadline_is_not_run(serve, count):
    async def work(model):
        tasks = [
            asyncio.ensure_future(model.infer(number(n), timeout_s=limit))
            for n, limit in ((3e5, None), (FOREVER, 0.01), (5, 3600.0))
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, late, answer = serve(work, artifact=count)
    assert isinstance(late, Refused) and late.code == CODE.DEADLINE_EXCEEDED
    assert answer.outputs[0].item() == 5


def test_two_instances_run_at_the_same_time(serve, count):
    async def work(model):
        stuck = asyncio.ensure_future(model.infer(number(FOREVER)))
        answers = [(await model.infer(number(n))).outputs[0].item() for n in range(3)]
        pids = model.worker_pids()
        stuck.cancel()
        return answers, pids

    answers, pids = serve(work, artifact=count, instances=2)
    assert answers == [0, 1, 2] and len(set(pids)) == 2 and all(gone(pid) for pid in pids)


def test_one_of_two_instances_dies_and_the_model_stays_ready(serve, count):
    async def work(model):
        first, second = model.worker_pids()
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in model.worker_pids())
        assert model.state == "READY" and model.worker_pids() == [second]
        await until(lambda: len(model.worker_pids()) == 2)
        return model.states

    assert serve(work, artifact=count, instances=2) == ["READY", "UNAVAILABLE"]


def test_draining_answers_what_is_here_and_refuses_what_comes(serve, count):
    async def work(model):
        tasks = [asyncio.ensure_future(model.infer(number(n))) for n in (1e5, 1, 2)]
        await until(lambda: model.queued == 2)
        drained = asyncio.ensure_future(model.drain())
        await until(lambda: model.state == "UNLOADING")
        with pytest.raises(Refused, match="unloading") as caught:
            await model.infer(number(4))
        await drained
        assert all(task.done() for task in tasks)
        await model.drain()  # nothing is left: at once
        return caught.value.code, [task.result().outputs[0].item() for task in tasks]

    assert serve(work, artifact=count) == (CODE.UNAVAILABLE, [1e5, 1, 2])


def test_draining_ends_when_the_last_that_waits_leaves_or_dies(serve, count):
    async def work(model):
        tasks = [asyncio.ensure_future(model.infer(number(n))) for n in (FOREVER, 1)]
        await until(lambda: model.queued == 1)
        drained = asyncio.ensure_future(model.drain())
        await until(lambda: model.state == "UNLOADING")
        tasks[1].cancel()
        await until(lambda: model.queued == 0)
        os.kill(model.worker_pids()[0], signal.SIGKILL)
        await drained
        return (await asyncio.gather(*tasks, return_exceptions=True)), model.restarts

    (died, left), restarts = serve(work, artifact=count)
    assert died.code == CODE.UNAVAILABLE and isinstance(left, asyncio.CancelledError)
    assert restarts == []  # nobody needs another engine


def test_closing_refuses_what_is_left_and_leaves_no_process(serve, count):
    async def work(model):
        tasks = [asyncio.ensure_future(model.infer(number(n))) for n in (FOREVER, 1)]
        await until(lambda: model.queued == 1)
        pids = model.worker_pids()
        await model.close()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(Refused, match="unavailable: it was unloaded"):
            await model.infer(number(1))
        return pids, [error.code for error in errors]

    pids, codes = serve(work, artifact=count)
    assert codes == [CODE.UNAVAILABLE] * 2 and all(gone(pid) for pid in pids)


def test_one_engine_that_does_not_load_leaves_none(make_bundle):
    folder = make_bundle("onnx")
    bundle = read_bundle(folder)
    bundle.artifact_path("onnx").write_bytes(b"no model")

    async def work():
        model = ServedModel("m", bundle, "0" * 64, "onnx", ModelSettings(instances=2))
        with pytest.raises(Refused, match="cannot load") as caught:
            await model.start()
        with pytest.raises(Refused, match="unavailable"):
            await model.infer([np.zeros((1, 3, 32, 32), np.float32)])
        return caught.value.code, model.state, model.worker_pids()

    assert run(work()) == (CODE.FAILED_PRECONDITION, "UNAVAILABLE", [])

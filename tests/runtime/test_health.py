"""grpc.health.v1 as probes use it: checks, watches, a drain."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from server_tools import calls_of, refusal, run, served

from runtime.serving.services.health import WATCHERS, Health
from runtime.wire.descriptors import HEALTH

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def test_check():
    async def work() -> None:
        health = Health()
        health.set("", False)
        health.set("tiny/onnx", True)
        async with served({HEALTH: health}) as channel:
            ask = calls_of(channel, HEALTH)
            assert (await ask("Check")).status == NOT_SERVING
            assert (await ask("Check", service="tiny/onnx")).status == SERVING
            code, text = await refusal(ask("Check", service="tiny"))
            assert code is grpc.StatusCode.NOT_FOUND and "'tiny'" in text
            health.set("", True)
            assert (await ask("Check")).status == SERVING
            health.set("tiny/onnx", False)
            assert (await ask("Check", service="tiny/onnx")).status == NOT_SERVING

    run(work())


def test_watch_tells_every_change_of_its_own_name_and_ends_with_the_drain():
    async def work() -> None:
        health = Health()
        health.set("", True)
        async with served({HEALTH: health}) as channel:
            ask = calls_of(channel, HEALTH)
            model, other = ask("Watch", service="m"), ask("Watch")
            assert (await model.read()).status == SERVICE_UNKNOWN
            assert (await other.read()).status == SERVING
            health.set("m", True)
            assert (await model.read()).status == SERVING
            health.set("m", True)  # no change, no word
            health.set("m", False)
            assert (await model.read()).status == NOT_SERVING
            health.set("m", True)
            assert (await model.read()).status == SERVING
            health.drain()
            for watch in (model, other):
                assert (await watch.read()).status == NOT_SERVING
                assert await watch.read() is grpc.aio.EOF
                assert await watch.code() is grpc.StatusCode.OK
            health.set("m", True)  # a model that became ready too late
            assert (await ask("Check", service="m")).status == NOT_SERVING
            assert not health.serving("m")

    run(work())


def test_quick_changes_end_in_the_last_state():
    """A watch may miss states that were over at once, never the one that stays."""

    async def work() -> None:
        health = Health()
        async with served({HEALTH: health}) as channel:
            watch = calls_of(channel, HEALTH)("Watch", service="m")
            assert (await watch.read()).status == SERVICE_UNKNOWN
            for number in range(50):
                last = number % 2 == 0
                for _ in range(number % 5):
                    health.set("m", not last)
                    health.set("m", last)
                    await asyncio.sleep(0)
                health.set("m", last)
                want = SERVING if last else NOT_SERVING
                while (await watch.read()).status != want:
                    pass

    run(work())


def test_watches_are_bounded_and_given_back():
    async def work() -> None:
        health = Health()
        async with served({HEALTH: health}) as channel:
            ask = calls_of(channel, HEALTH)
            watches = [ask("Watch") for _ in range(WATCHERS)]
            for watch in watches:
                assert (await watch.read()).status == SERVICE_UNKNOWN
            code, text = await refusal(ask("Watch").read())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Check" in text
            for watch in watches:
                watch.cancel()
            while True:  # until the server has seen it
                late = ask("Watch")
                try:
                    assert (await late.read()).status == SERVICE_UNKNOWN
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    await asyncio.sleep(0.05)

    run(work())


def test_a_stranger_cannot_leave_much_behind():
    async def work() -> None:
        async with served({HEALTH: Health()}) as channel:
            watch = calls_of(channel, HEALTH)("Watch", service="m" * 257)
            code, text = await refusal(watch.read())
            assert code is grpc.StatusCode.NOT_FOUND and len(text) < 300

    run(work())

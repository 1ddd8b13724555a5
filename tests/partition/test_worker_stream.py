"""The coordinator's stream to a worker: deadlines, answers that come late or never, its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from agent_tools import channel_to, eventually, refusal, running_agent
from coordinator_tools import addresses_of, coordinating, is_right, pictures, predict, write_plan
from server_tools import PATIENCE_S, run, served, until

from partition.serving.worker_reply import BadInput, NoReply
from partition.serving.worker_stream import WorkerStream
from runtime.serving.ending import first_of
from runtime.wire.descriptors import INFERENCE, message, methods
from runtime.wire.input_ref import input_refused
from runtime.wire.refused import Refused, exhausted, unavailable
from runtime.wire.streamed import answer_of, refusal_of, timeout_of

REQUEST, RESPONSE = (message(f"inference.ModelInfer{kind}") for kind in ("Request", "Response"))
CODE = grpc.StatusCode


@dataclass
class Worker:
    """Answers when the test says so, and in the order that the test says."""

    asked: list[Any] = field(default_factory=list)
    ended: bool = False
    full: bool = False
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    _context: Any = None

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        self._context = context
        await first_of(asyncio.create_task(self._read(requests)), self.finish)
        if self.finish.is_set():
            raise unavailable("the agent is ending")
        if self.full:
            raise exhausted("256 calls run already")
        self.ended = True

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            self.full = request.model_name == "full"
            if self.full:
                return
            self.asked.append(request)

    async def answer(self, number: int) -> None:
        """With the model's name as the version, so that a mistaken identity shows."""
        request = self.asked[number]
        response = RESPONSE(id=request.id, model_version=request.model_name)
        await self._context.write(answer_of(response))

    async def refuse(self, number: int, refused: Refused) -> None:
        await self._context.write(refusal_of(self.asked[number], refused))


@dataclass
class Linked:
    """A worker, our stream to it, and what was told of its loss."""

    worker: Worker
    stream: WorkerStream
    lost: list[NoReply] = field(default_factory=list)

    def ask(self, name: str, timeout_s: float = PATIENCE_S) -> asyncio.Task[str]:
        """A request for the model `name`; the version that the answer has."""

        async def asking() -> str:
            response, _ = await self.stream.ask(
                lambda head: head + REQUEST(model_name=name).SerializeToString(), timeout_s
            )
            return str(response.model_version)

        return asyncio.create_task(asking())

    async def asked(self, count: int) -> None:
        await until(lambda: len(self.worker.asked) >= count)


@asynccontextmanager
async def linked() -> AsyncIterator[Linked]:
    worker = Worker()
    async with served({INFERENCE: worker}) as channel:
        link = Linked(worker, WorkerStream(channel, (), PATIENCE_S))
        link.stream.subscribe(link.lost.append)
        yield link


def with_link(test: Callable[[Linked], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def running() -> None:
        async def work() -> None:
            async with linked() as link:
                await test(link)

        run(work())

    running.__name__, running.__doc__ = test.__name__, test.__doc__
    return running


async def failure(asking: asyncio.Task[str]) -> NoReply:
    try:
        answer = await asking
    except NoReply as error:
        return error
    raise AssertionError(f"expected no reply, got {answer}")


@with_link
async def test_answers_find_their_requests_in_whatever_order(link: Linked) -> None:
    asking = [link.ask(name) for name in "abc"]
    await link.asked(3)
    for number in (2, 0, 1):
        await link.worker.answer(number)
    assert await asyncio.gather(*asking) == ["a", "b", "c"]


@with_link
async def test_each_request_carries_its_own_deadline(link: Linked) -> None:
    asking = [link.ask("a", 20.0), link.ask("b", 0.25)]
    await link.asked(2)
    assert [timeout_of(request) for request in link.worker.asked] == [20.0, 0.25]
    error = await failure(asking[1])
    assert error.code is CODE.DEADLINE_EXCEEDED
    await link.worker.answer(1)  # too late; nobody else is to get it
    asking.append(link.ask("c"))
    await link.asked(3)
    await link.worker.answer(2)
    await link.worker.answer(0)
    assert await asking[0] == "a" and await asking[2] == "c"
    assert link.lost == []


@with_link
async def test_who_stops_waiting_leaves_the_others_alone(link: Linked) -> None:
    asking = [link.ask(name) for name in "abc"]
    await link.asked(1)
    asking[0].cancel()
    asking[1].cancel()
    await link.worker.answer(0)
    await until(lambda: any(request.model_name == "c" for request in link.worker.asked))
    (number,) = [n for n, request in enumerate(link.worker.asked) if request.model_name == "c"]
    await link.worker.answer(number)
    assert await asking[2] == "c"
    assert asking[0].cancelled() and asking[1].cancelled()


@with_link
async def test_a_request_that_is_given_up_before_it_was_sent_is_not_sent(link: Linked) -> None:
    asking = [link.ask("a"), link.ask("b")]
    await asyncio.sleep(0)  # they ask; no more than the first can be on its way
    asking[1].cancel()
    asking.append(link.ask("c"))
    await link.asked(2)
    await link.worker.answer(0)
    await link.worker.answer(1)
    assert await asking[0] == "a" and await asking[2] == "c"
    assert [request.model_name for request in link.worker.asked] == ["a", "c"]


@with_link
async def test_refusals_are_of_one_request(link: Linked) -> None:
    asking = [link.ask(name) for name in "abc"]
    await link.asked(3)
    await link.worker.refuse(0, exhausted("64 requests wait already"))
    await link.worker.refuse(1, input_refused(CODE.NOT_FOUND, "no such input"))
    await link.worker.answer(2)
    full, bad = [await failure(each) for each in asking[:2]]
    assert full.code is CODE.RESOURCE_EXHAUSTED and "64 requests" in str(full)
    assert not isinstance(full, BadInput)
    assert isinstance(bad, BadInput) and bad.code is CODE.NOT_FOUND
    assert await asking[2] == "c"


@with_link
async def test_the_end_of_the_stream_is_the_end_of_what_waits(link: Linked) -> None:
    asking = [link.ask(name) for name in "ab"]
    await link.asked(2)
    link.worker.finish.set()
    for each in asking:
        error = await failure(each)
        assert error.code is CODE.UNAVAILABLE and "ending" in str(error)
    assert [error.code for error in link.lost] == [CODE.UNAVAILABLE]
    assert (await failure(link.ask("c"))).code is CODE.UNAVAILABLE


@with_link
async def test_a_stream_that_is_refused_says_why(link: Linked) -> None:
    error = await failure(link.ask("full"))
    assert error.code is CODE.RESOURCE_EXHAUSTED and "256 calls" in str(error)
    assert len(link.lost) == 1


@with_link
async def test_close_waits_for_what_was_asked(link: Linked) -> None:
    asking = [link.ask(name) for name in "ab"]
    await link.asked(2)
    link.stream.close()
    await until(lambda: link.worker.ended)
    await until(lambda: all(each.done() for each in asking))
    assert link.lost == []


def test_a_worker_without_streams_says_so() -> None:
    async def work() -> None:
        async with served({INFERENCE: object()}) as channel:
            link = Linked(Worker(), WorkerStream(channel, (), PATIENCE_S))
            error = await failure(link.ask("a"))
            assert error.code is CODE.UNIMPLEMENTED

    run(work())


# An agent of a version that had no streams, started as if by an interpreter of its own.
OLD_AGENT = """#!/bin/sh
shift 2
exec "{python}" -c '
import sys
from runtime.serving.services.inference import InferenceService
del InferenceService.ModelStreamInfer
from edgevit.cli import main
sys.exit(main())
' "$@"
"""


def test_an_agent_without_streams_is_asked_by_calls(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text(OLD_AGENT.format(python=sys.executable))
    old.chmod(0o700)
    plan = write_plan(tmp_path / "plan", layouts=("NCHW", "NHWC"))
    with ExitStack() as stack:
        agents = [
            stack.enter_context(
                running_agent(tmp_path / f"store-{i}", load=[plan.bundle(i)], python=python)
            )
            for i, python in enumerate((old, None))
        ]
        coordinator = stack.enter_context(coordinating(plan, addresses_of(agents)))
        for agent, has in zip(agents, (False, True), strict=True):
            channel = stack.enter_context(channel_to(agent.address))
            code, _ = refusal(lambda channel=channel: list(stream_of(channel)))
            assert (code is not CODE.UNIMPLEMENTED) is has
        channel = stack.enter_context(channel_to(coordinator.address))
        eventually(lambda: predict(channel, pictures(1)).missing == [])
        for seed in range(3):
            answer = predict(channel, pictures(1, seed))
            assert answer.missing == [] and is_right(plan, pictures(1, seed), answer)


def stream_of(channel: Any) -> Any:
    """One request that no server can read, as a stream."""
    path = methods(INFERENCE)["ModelStreamInfer"].path
    return channel.stream_stream(path)(iter([b"\xff\xff\xff"]), timeout=PATIENCE_S)

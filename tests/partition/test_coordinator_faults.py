"""Workers that die, hang, come back and change, under a load of requests.

Every answer has to be right: that of the plan, or of the plan without the sub-models that it says
are missing. Nothing but such answers and the named refusals may reach a client.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from agent_tools import Agent, ask, channel_to, eventually, refusal, running_agent
from coordinator_tools import (
    DEVICES,
    MODEL,
    Answer,
    TinyPlan,
    addresses_of,
    agents_of,
    coordinating,
    is_right,
    pictures,
    predict,
    status_of,
    write_plan,
)
from shaping_proxy import BLACKHOLE, PASS, RESET, proxied

from runtime.client import AgentClient
from runtime.wire.descriptors import HEALTH

PATIENCE_S = 20.0
REQUEST_S = 8.0


class Load:
    """Requests one after the other in a thread; what came of each."""

    def __init__(self, plan: TinyPlan, channel: Any) -> None:
        self.plan, self.channel = plan, channel
        self.answers: list[Answer] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        seed = 0
        while not self._over.is_set():
            seed += 1
            x = pictures(1, seed % 7)
            try:
                answer = predict(self.channel, x, timeout=REQUEST_S)
            except grpc.RpcError as error:
                self.refused.append(status_of(error))
                time.sleep(0.02)
                continue
            if not is_right(self.plan, x, answer):
                self.wrong.append(f"missing {answer.missing}")
            self.answers.append(answer)

    def wait_for(self, what: Callable[[Answer], bool]) -> None:
        """Until an answer that comes from now on is such."""
        seen = len(self.answers)

        def came() -> bool:
            return any(what(answer) for answer in self.answers[seen:])

        eventually(came, PATIENCE_S)

    def without(self, *lost: int) -> None:
        self.wait_for(lambda answer: answer.missing == list(lost))


@contextmanager
def load_on(plan: TinyPlan, channel: Any) -> Iterator[Load]:
    """The load until the block ends; then everything that was answered has to be right."""
    load = Load(plan, channel)
    load._thread.start()
    try:
        load.without()
        yield load
    finally:
        load._over.set()
        load._thread.join(30)
    assert load.wrong == []
    assert len(load.answers) > 20


class Workers:
    """The agents of a plan for all tests, each at one address and with one store throughout."""

    def __init__(self, plan: TinyPlan, home: Path, agents: list[Agent], stack: ExitStack) -> None:
        self.plan, self.home, self.agents, self._stack = plan, home, agents, stack

    def store(self, index: int) -> Path:
        return self.home / f"store-{index}"

    def again(self, index: int) -> None:
        """Start one that has ended; it loads what it had."""
        address = self.agents[index].address
        agent = self._stack.enter_context(running_agent(self.store(index), listen=address))
        self.agents[index] = agent
        with channel_to(address) as channel:
            eventually(lambda: ask(channel, "ModelReady", name=f"sub{index}").ready, PATIENCE_S)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    home = tmp_path_factory.mktemp("workers")
    plan = write_plan(home / "plan")
    with agents_of(plan, home) as agents, ExitStack() as stack:
        yield Workers(plan, home, agents, stack)


@pytest.fixture
def workers(kept: Workers) -> Workers:
    """All of them, whatever a test before has killed."""
    for index, agent in enumerate(kept.agents):
        if not agent.alive():
            kept.again(index)
    return kept


def test_sigkill_and_back_at_the_same_address(workers: Workers) -> None:
    plan, agents = workers.plan, workers.agents
    with AgentClient(agents[1].address) as client:
        generation = client.describe().generation
    with (
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        agents[1].kill()
        load.without(1)
        rows = {m.name: m for m in ask(channel, "RepositoryIndex").models}
        lost = rows[f"{MODEL}/sub1@pi-1"]
        assert lost.state == "UNAVAILABLE" and lost.reason
        with running_agent(workers.store(1), listen=agents[1].address):
            load.without()
        load.without(1)
        assert load.refused == []
        generations = [
            event["generation"]
            for event in coordinator.events("worker is in")
            if event["submodel"] == "sub1"
        ]
        assert generations == [generation, generation + 1]
        assert len({e["device_id"] for e in coordinator.events("worker is in")}) == 3


def test_sigstop_and_sigcont(workers: Workers) -> None:
    """A process that hangs keeps its connections: only time tells."""
    plan, agents = workers.plan, workers.agents
    with (
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        for _ in range(2):
            stopped = psutil.Process(agents[2].pid)
            stopped.suspend()
            try:
                load.without(2)
                load.without(2)
            finally:
                stopped.resume()
            load.without()
        assert load.refused == []
        (engine,) = agents[0].engines()
        engine.suspend()
        try:
            load.without(0)
        finally:
            engine.resume()
        load.without()
        assert load.refused == []


def test_another_bundle_under_the_same_name_is_not_used(workers: Workers, tmp_path: Path) -> None:
    """A worker that was started with a sub-model of another plan would answer plausibly."""
    plan, agents = workers.plan, workers.agents
    other = write_plan(tmp_path / "other", seed=1)
    with (
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        agents[0].kill()
        with running_agent(
            tmp_path / "store-other", load=[other.bundle(0)], listen=agents[0].address
        ):
            load.without(0)
            eventually(
                lambda: any(
                    "has no model of the bundle" in event["reason"]
                    for event in coordinator.events("worker is out")
                ),
                PATIENCE_S,
            )
            load.without(0)
        workers.again(0)
        load.without()


def test_a_model_that_is_swapped_while_it_is_used(workers: Workers, tmp_path: Path) -> None:
    """The connection stays; the version in each request is what tells."""
    plan, agents = workers.plan, workers.agents
    other = write_plan(tmp_path / "other", seed=1)
    with (
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        with AgentClient(agents[1].address) as client:
            for bundle, lost in ((other.bundle(1), [1]), (plan.bundle(1), [])):
                client.upload(bundle, "sub1")
                client.load("sub1")
                load.without(*lost)
        assert load.refused == []


def test_all_but_one_and_then_none(workers: Workers) -> None:
    plan, agents = workers.plan, workers.agents
    with (
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        agents[0].kill()
        agents[1].kill()
        load.without(0, 1)
        assert load.refused == []
        agents[2].kill()
        eventually(lambda: load.refused, PATIENCE_S)
        eventually(lambda: not ask(channel, "ServerReady").ready, PATIENCE_S)
        got, said = refusal(lambda: predict(channel, pictures(1)))
        assert got is grpc.StatusCode.UNAVAILABLE
        assert f"no sub-model of '{MODEL}' can answer now" in said
        assert all(f"sub{i}: " in said for i in range(3))
        assert ask(channel, "Check", of=HEALTH, service=MODEL).status == 2
        for index in range(3):
            workers.again(index)
        load.without()
        assert set(load.refused) == {"UNAVAILABLE"}
        assert ask(channel, "ServerReady").ready


@pytest.mark.parametrize("mode", [BLACKHOLE, RESET])
def test_a_network_that_fails(workers: Workers, mode: str) -> None:
    plan, agents = workers.plan, workers.agents
    with (
        proxied(agents[1].address) as proxy,
        coordinating(plan, addresses_of(agents) | {"pi-1": proxy.address}) as coordinator,
        channel_to(coordinator.address) as channel,
        load_on(plan, channel) as load,
    ):
        for _ in range(2):
            proxy.set(mode)
            load.without(1)
            load.without(1)
            proxy.set(PASS)
            load.without()
        assert load.refused == []


def test_a_slow_link_leaves_its_sub_model_out_in_time(workers: Workers) -> None:
    """The request's own deadline is what a worker has, less what fusing takes."""
    plan, agents = workers.plan, workers.agents
    with (
        proxied(agents[0].address) as proxy,
        coordinating(plan, addresses_of(agents) | {"pi-0": proxy.address}) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        x = pictures(1)
        assert predict(channel, x).missing == []
        proxy.delay_s = 0.3
        for _ in range(3):
            answer = predict(channel, x, timeout=0.5)
            assert answer.missing == [0]
            assert is_right(plan, x, answer)
        eventually(lambda: predict(channel, x, timeout=30).missing == [], PATIENCE_S)
        proxy.delay_s = 0.0
        eventually(lambda: predict(channel, x, timeout=0.5).missing == [], PATIENCE_S)


def test_two_at_once_and_a_load_from_many(workers: Workers) -> None:
    plan, agents = workers.plan, workers.agents
    with ExitStack() as stack:
        coordinator = stack.enter_context(coordinating(plan, addresses_of(agents)))
        channel = stack.enter_context(channel_to(coordinator.address))
        loads = [stack.enter_context(load_on(plan, channel)) for _ in range(4)]
        agents[0].process.send_signal(signal.SIGKILL)
        psutil.Process(agents[1].pid).suspend()
        try:
            for load in loads:
                load.without(0, 1)
        finally:
            psutil.Process(agents[1].pid).resume()
        for load in loads:
            load.without(0)
        agents[0].process.wait(30)
        workers.again(0)
        for load in loads:
            load.without()
            assert load.refused == []


def test_a_coordinator_that_is_there_first(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    with proxied("127.0.0.1:1") as proxy, ExitStack() as stack:
        addresses = dict.fromkeys(DEVICES[:3], proxy.address)
        coordinator = stack.enter_context(coordinating(plan, addresses))
        channel = stack.enter_context(channel_to(coordinator.address))
        assert not ask(channel, "ModelReady", name=MODEL).ready
        got, _ = refusal(lambda: predict(channel, pictures(1)))
        assert got is grpc.StatusCode.UNAVAILABLE
        # All three sub-models on one device, which has three names.
        bundles = [plan.bundle(i) for i in range(3)]
        agent: Agent = stack.enter_context(running_agent(tmp_path / "store", load=bundles))
        proxy.target = agent.address
        eventually(lambda: ask(channel, "ModelReady", name=MODEL).ready, PATIENCE_S)
        x = pictures(1)
        eventually(lambda: predict(channel, x).missing == [], PATIENCE_S)
        assert is_right(plan, x, predict(channel, x))

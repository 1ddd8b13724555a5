"""Who may talk to whom in a cluster; and two coordinators that share one, under load."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_tools import (
    Agent,
    Certificates,
    ask,
    certificates,
    channel_to,
    credentials,
    eventually,
    refusal,
    running_agent,
)
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
    write_plan,
)

CALLERS = 3
REQUEST_S = 30.0


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("pems"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TinyPlan:
    return write_plan(tmp_path_factory.mktemp("tiny") / "plan")


@pytest.fixture(scope="module")
def guarded(
    plan: TinyPlan, tmp_path_factory: pytest.TempPathFactory, pems: Certificates
) -> Iterator[list[Agent]]:
    """Three agents that ask for certificates."""
    home = tmp_path_factory.mktemp("guarded")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                running_agent(home / f"store-{i}", *pems.flags(), load=[plan.bundle(i)])
            )
            for i in range(3)
        ]


def write_cluster(
    plan: TinyPlan, agents: list[Agent], ours: tuple[Path, Path] | None, ca: Path
) -> None:
    """cluster.yaml with the addresses of the agents, and what the coordinator shows and trusts."""
    shown = f", cert: {ours[0]}, key: {ours[1]}" if ours else ""
    lines = ["devices:"]
    for name, agent in zip(DEVICES, agents, strict=False):
        lines.append(
            f"  - {{name: {name}, address: '{agent.address}', tls: {{ca: {ca}{shown}}}, "
            "compute: 1 GMAC/s, targets: [onnx]}"
        )
    lines.append(f"  - {{name: {DEVICES[3]}, compute: 1 GMAC/s, targets: [onnx]}}")
    (plan.path / "cluster.yaml").write_text("\n".join(lines) + "\n")


def test_certificates_on_both_ways(
    plan: TinyPlan, guarded: list[Agent], pems: Certificates
) -> None:
    """Caller and coordinator, coordinator and agents: each shows one and asks for one."""
    write_cluster(plan, guarded, pems.client, pems.ca)
    x = pictures(1)
    with coordinating(plan, {}, *pems.flags()) as coordinator:
        with channel_to(coordinator.address, credentials(pems.ca, pems.client)) as channel:
            answer = predict(channel, x)
            assert answer.missing == [] and is_right(plan, x, answer)
        for shown in (None, pems.foreign):
            with channel_to(coordinator.address, credentials(pems.ca, shown)) as channel:
                code, _ = refusal(lambda channel=channel: predict(channel, x, timeout=10))
                assert code is grpc.StatusCode.UNAVAILABLE
        with channel_to(coordinator.address) as channel:
            code, _ = refusal(lambda: predict(channel, x, timeout=10))
            assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("wrong", ["none shown", "foreign shown", "foreign trusted"])
def test_agents_that_the_coordinator_cannot_talk_to_are_left_out(
    plan: TinyPlan, guarded: list[Agent], pems: Certificates, wrong: str
) -> None:
    shown = {"none shown": None, "foreign shown": pems.foreign}.get(wrong, pems.client)
    trusted = pems.foreign_ca if wrong == "foreign trusted" else pems.ca
    write_cluster(plan, guarded, shown, trusted)
    with (
        coordinating(plan, {}) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        code, said = refusal(lambda: predict(channel, pictures(1), timeout=10))
        assert code is grpc.StatusCode.UNAVAILABLE and f"'{MODEL}'" in said
        assert not ask(channel, "ServerReady").ready
        rows = {m.name: m for m in ask(channel, "RepositoryIndex").models}
        assert all(row.state == "UNAVAILABLE" for row in rows.values())
        assert rows[f"{MODEL}/sub0@pi-0"].reason


class Caller:
    """Asks one coordinator without a pause, in a thread of its own."""

    def __init__(self, plan: TinyPlan, channel: Any, seed: int, over: threading.Event) -> None:
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        self._plan, self._channel, self._seed, self._over = plan, channel, seed, over
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            x = pictures(1, self._seed)
            try:
                answer = predict(self._channel, x, timeout=REQUEST_S)
            except grpc.RpcError as error:
                self.wrong.append(str(error))
                time.sleep(0.05)
                continue
            if not is_right(self._plan, x, answer):
                self.wrong.append(f"missing {answer.missing}")
            self.answers.append(answer)


def test_two_coordinators_share_a_cluster_under_load(plan: TinyPlan, tmp_path: Path) -> None:
    """A worker goes and comes back; one coordinator ends, and the other does not notice."""
    with ExitStack() as stack:
        agents = stack.enter_context(agents_of(plan, tmp_path))
        addresses = addresses_of(agents)
        staying = stack.enter_context(coordinating(plan, addresses))
        leaving = ExitStack()
        stack.push(leaving)
        pair = [staying, leaving.enter_context(coordinating(plan, addresses))]
        channels = [stack.enter_context(channel_to(each.address)) for each in pair]
        over = [threading.Event(), threading.Event()]
        callers = [
            [Caller(plan, channel, 10 * i + j, over[i]) for j in range(CALLERS)]
            for i, channel in enumerate(channels)
        ]
        try:
            _all_see(callers, [])
            agents[2].process.send_signal(signal.SIGSTOP)
            try:
                _all_see(callers, [2])
            finally:
                agents[2].process.send_signal(signal.SIGCONT)
            _all_see(callers, [])
            agents[0].kill()
            _all_see(callers, [0])
            stack.enter_context(running_agent(tmp_path / "store-0", listen=agents[0].address))
            _all_see(callers, [])
            over[1].set()
            for caller in callers[1]:
                caller.thread.join(REQUEST_S)
            leaving.close()
            _all_see(callers[:1], [])
        finally:
            for each in over:
                each.set()
            for caller in [*callers[0], *callers[1]]:
                caller.thread.join(REQUEST_S)
        assert [caller.wrong for group in callers for caller in group] == [[]] * 2 * CALLERS
        assert staying.alive()


def _all_see(callers: list[list[Caller]], lost: list[int]) -> None:
    """Wait until every caller gets a new answer without these sub-models, and none beside them."""
    for caller in [caller for group in callers for caller in group]:
        seen = len(caller.answers)
        eventually(
            lambda caller=caller, seen=seen: any(
                answer.missing == lost for answer in caller.answers[seen:]
            )
        )

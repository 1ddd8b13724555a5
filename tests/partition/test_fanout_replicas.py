"""A sub-model with a replica on another device: nothing is missing while one of them answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from agent_tools import Agent, channel_to, eventually
from coordinator_tools import (
    addresses_of,
    agents_of,
    coordinating,
    is_right,
    pictures,
    predict,
    write_plan,
)
from shaping_proxy import proxied

REPLICAS = (("pi-1",), ("pi-2",), ("pi-0",))
LOADS = ((0, 2), (1, 0), (2, 1))


def test_any_one_device_may_go(tmp_path: Path) -> None:
    """A device that hangs keeps its connections, so that the replica is asked by the clock."""
    plan = write_plan(tmp_path / "plan", replicas=REPLICAS)
    with (
        agents_of(plan, tmp_path, LOADS) as agents,
        coordinating(plan, addresses_of(agents)) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        x = pictures(1)
        assert predict(channel, x).missing == []
        for agent in agents:
            process = psutil.Process(agent.pid)
            process.suspend()
            try:
                answers = [predict(channel, x, timeout=5) for _ in range(30)]
            finally:
                process.resume()
            assert all(answer.missing == [] for answer in answers)
            assert all(is_right(plan, x, answer) for answer in answers)
            eventually(
                lambda: all(each["usable"] for each in _workers(channel).values()),
            )
        agents[0].kill()
        answers = [predict(channel, x) for _ in range(20)]
        assert all(answer.missing == [] and is_right(plan, x, answer) for answer in answers)


def test_a_slow_first_place_is_hedged(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", replicas=(("pi-1",), (), ()))
    with (
        agents_of(plan, tmp_path, ((0,), (1, 0), (2,))) as agents,
        proxied(agents[0].address) as proxy,
        coordinating(
            plan, addresses_of(agents) | {"pi-0": proxy.address}, "--metrics", "127.0.0.1:0"
        ) as coordinator,
        channel_to(coordinator.address) as channel,
    ):
        counted = Agent("", coordinator.metrics, coordinator.process, Path())
        x = pictures(1)
        for _ in range(30):  # enough to know what is usual
            assert predict(channel, x).missing == []
        proxy.delay_s = 0.25
        before = counted.sample("edgevit_cluster_hedges_total", submodel="sub0")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: predict(channel, x), range(12)))
        assert all(answer.missing == [] and is_right(plan, x, answer) for answer in answers)
        assert counted.sample("edgevit_cluster_hedges_total", submodel="sub0") > before
        assert counted.sample(
            "edgevit_cluster_worker_calls_total", submodel="sub0", device="pi-1", status="OK"
        ) > 0  # fmt: skip
        cancelled = {"submodel": "sub0", "device": "pi-0", "status": "CANCELLED"}
        assert counted.sample("edgevit_cluster_worker_calls_total", **cancelled) > 0


def _workers(channel: object) -> dict[str, dict[str, bool]]:
    from agent_tools import ask

    rows = ask(channel, "RepositoryIndex").models
    return {row.name: {"usable": row.state == "READY"} for row in rows}

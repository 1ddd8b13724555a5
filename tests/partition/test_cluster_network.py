"""Five hosts with links of 2 Mbit/s: where the time of a request went, and that nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from coordinator_tools import DEVICES, Coordinator, write_plan
from netns_tools import Net, network, why_not
from shaped_cluster import CALLER, HUB, SCENE, on_hosts
from timed_calls import timed_calls

from partition.serving.service import STAGES

pytestmark = pytest.mark.slow
WORKERS, RATE, CALLS = 3, 2_000_000, 10
CLOSE = 0.05
# A small picture, for each takes a while; a large one where it stays where it is, for some work.
SIDES = {"": 64, SCENE: 1280}


@dataclass
class Hosts:
    net: Net
    coordinator: Coordinator
    ref: str

    @property
    def picture_us(self) -> float:
        """What one picture needs on a link."""
        return 1e6 * 8 * (4 * 3 * SIDES[self.ref] ** 2) / RATE

    def calls(self, **flags: object) -> dict[str, Any]:
        with self.net[CALLER].inside():
            return timed_calls(
                self.coordinator.address,
                **{"side": SIDES[self.ref], "ref": self.ref, "calls": CALLS, **flags},
            )


@pytest.fixture(scope="module", params=["", SCENE], ids=["broadcast", "local-input"])
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    home, side = tmp_path_factory.mktemp("hosts"), SIDES[request.param]
    plan = write_plan(home / "plan", side=side, layouts=("NCHW",) * WORKERS)
    with network([CALLER, HUB, *DEVICES[:WORKERS]]) as net:
        assert len(net.hosts) == 5
        with on_hosts(net, plan, home, WORKERS, side) as coordinator:
            for name in net.hosts:
                net.shape(name, RATE)
            yield Hosts(net, coordinator, request.param)


def test_the_stages_and_the_callers_network_make_up_the_whole(hosts: Hosts) -> None:
    """The caller's own network is that of the same bytes turned away at the coordinator's door."""
    door, served = hosts.calls(door=1), hosts.calls()
    assert door["request_bytes"] == served["request_bytes"]
    own_us = 1e6 * median(told["seconds"] for told in door["calls"])
    gaps = []
    for told in served["calls"]:
        assert not told["degraded"]
        whole_us = 1e6 * told["seconds"]
        gaps.append(abs(whole_us - own_us - sum(told[stage] for stage in STAGES)) / whole_us)
    assert median(gaps) <= CLOSE, gaps


def test_pictures_take_the_time_that_their_bytes_need(hosts: Hosts) -> None:
    """All of them leave the coordinator over its own link; in local-input mode none does."""
    network_us = median(told["network_us"] for told in hosts.calls()["calls"])
    if hosts.ref:
        assert network_us < 0.05 * hosts.picture_us
    else:
        assert 1 <= network_us / (WORKERS * hosts.picture_us) <= 1.3


def test_a_host_sees_its_own_network_alone(hosts: Hosts) -> None:
    """And the thread is back home after it, also where something failed there."""
    with hosts.net[HUB].inside():
        assert {"lo", "eth0"} == devices_here()
    with pytest.raises(ZeroDivisionError), hosts.net[HUB].inside():
        1 / 0  # noqa: B018
    found: list[set[str]] = []
    thread = threading.Thread(target=lambda: found.append(devices_here()))
    with hosts.net[HUB].inside():
        thread.start()  # a thread is where the one is that starts it
        thread.join()
    assert found == [{"lo", "eth0"}]


def test_nothing_is_left_of_a_network() -> None:
    if reason := why_not():
        pytest.skip(reason)
    before = devices_here()
    with pytest.raises(ZeroDivisionError), network(["one", "two"]) as net:
        keepers = [host.pid for host in (*net.hosts.values(), net.switch)]
        assert all(psutil.pid_exists(pid) for pid in keepers)
        assert devices_here() == before
        1 / 0  # noqa: B018
    assert not any(psutil.pid_exists(pid) for pid in keepers)
    assert devices_here() == before


def devices_here() -> set[str]:
    """Of the network that this thread is in."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}

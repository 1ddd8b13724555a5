"""`survey`: what is said of a cluster that is well, has lost something, or was never there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_tools import ask, certificates, channel_to, eventually
from cluster_see_tools import Served, remember, served, until_degraded, worker
from coordinator_tools import MODEL, addresses_of, coordinating, pictures, predict, write_plan
from shaping_proxy import BLACKHOLE, proxied

from partition.cluster.asking import Caller
from partition.cluster.running import find_running
from partition.cluster.status import survey
from runtime.client import AgentClient
from runtime.devices.file import AddressOptions
from runtime.errors import CheckFailed, RuntimeFault


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """sub2 has a replica on pi-0."""
    home = tmp_path_factory.mktemp("cluster")
    plan = write_plan(home / "plan", replicas=((), (), ("pi-0",)))
    with served(plan, home, ((0, 2), (1,), (2,))) as found:
        yield found


def test_a_cluster_that_is_well(cluster: Served) -> None:
    with channel_to(cluster.coordinator.address) as channel:
        for seed in range(3):
            predict(channel, pictures(1, seed))
    status = cluster.status()
    assert status.well
    assert status.coordinator.state == "ready"
    assert status.coordinator.plan_digest == cluster.plan.digest
    assert [device.name for device in status.devices] == ["pi-0", "pi-1", "pi-2"]
    roles = [[(w.submodel, w.role) for w in device.workers] for device in status.devices]
    assert roles == [
        [("sub0", "primary"), ("sub2", "replica")], [("sub1", "primary")], [("sub2", "primary")],
    ]  # fmt: skip
    for device, agent in zip(status.devices, cluster.agents, strict=True):
        assert device.address == agent.address
        assert device.last_seen_s == 0.0
        assert device.memory_agent is not None and device.memory_agent > 1 << 20
        assert {w.state for w in device.workers} == {"ready"}
    assert all((worker(status, f"sub{i}@pi-{i}").p50_ms or 0) > 0 for i in range(3))


def test_the_temperature_is_the_agents(cluster: Served) -> None:
    with AgentClient(cluster.agents[1].address) as agent:
        told = agent.describe().temperature_c
    found = cluster.status().devices[1].temperature_c
    assert (found is None) == (told is None)


def test_the_coordinator_alone_where_nothing_was_launched_here(
    cluster: Served, tmp_path: Path
) -> None:
    """A copy of the plan on another machine: agents' addresses are not known there."""
    (tmp_path / "plan").symlink_to(cluster.plan.path)
    status = survey(find_running(tmp_path / "plan", cluster.coordinator.address))
    assert status.well
    assert {device.address for device in status.devices} == {None}
    assert all(0 <= (device.last_seen_s or 0) < 60 for device in status.devices)
    assert all("its address is not known here" in device.note for device in status.devices)


def test_never_launched(tmp_path: Path) -> None:
    status = survey(find_running(write_plan(tmp_path / "plan").path))
    assert status.coordinator.state == "down" and not status.well
    assert f"edgevit cluster launch {tmp_path / 'plan'}" in status.coordinator.reason
    assert {w.state for device in status.devices for w in device.workers} == {"unreachable"}


def test_another_device_at_the_address_is_said(cluster: Served) -> None:
    with AgentClient(cluster.agents[0].address) as agent:
        right = agent.describe().device_id
    addresses = addresses_of(cluster.agents)
    try:
        remember(cluster.plan, addresses, cluster.coordinator, {"pi-0": right, "pi-1": "other"})
        notes = [device.note for device in cluster.status().devices]
    finally:
        remember(cluster.plan, addresses, cluster.coordinator)
    assert notes[0] == "" and notes[2] == ""
    assert "another device answers at this address" in notes[1]


def test_the_coordinator_of_another_plan(cluster: Served, tmp_path: Path) -> None:
    other = write_plan(tmp_path / "other", seed=5)
    running = find_running(other.path, cluster.coordinator.address)
    status = survey(running)
    assert status.coordinator.state == "down" and not status.well
    for part in (cluster.plan.digest[:12], other.digest[:12], f"launch {other.path}"):
        assert part in status.coordinator.reason
    with Caller(running) as caller, pytest.raises(CheckFailed, match="serves the plan"):
        caller.check(caller.look(5.0))


def test_what_is_no_coordinator(cluster: Served) -> None:
    running = find_running(cluster.plan.path, cluster.agents[0].address)
    assert "is no coordinator" in survey(running).coordinator.reason


def test_an_agent_that_was_killed_and_one_without_its_model(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", replicas=((), (), ("pi-0",)))
    with served(plan, tmp_path, ((0, 2), (1,), (2,))) as cluster:
        cluster.agents[1].kill()
        until_degraded(cluster, "sub1")
        status = cluster.status()
        assert status.coordinator.state == "degraded" and not status.well
        assert status.coordinator.blind == ("bee", "eel")
        gone = worker(status, "sub1@pi-1")
        assert gone.state == "unreachable" and "nothing listens" in gone.reason
        assert (status.devices[1].last_seen_s or 0) > 0
        with channel_to(cluster.agents[2].address) as channel:
            (name,) = [m.name for m in ask(channel, "RepositoryIndex", ready=True).models]
        with AgentClient(cluster.agents[2].address) as agent:
            agent.unload(name)
        with channel_to(cluster.coordinator.address) as channel:
            predict(channel, pictures(1))  # which tells the coordinator
        eventually(lambda: worker(cluster.status(), "sub2@pi-2").state == "out")
        status = cluster.status()
        assert "loaded" in worker(status, "sub2@pi-2").reason
        # The replica answers for it: nothing more is missing, but not all is well.
        assert worker(status, "sub2@pi-0").state == "ready"
        assert status.coordinator.missing == ("sub1",)


def test_without_a_coordinator_the_agents_tell_themselves(cluster: Served) -> None:
    addresses = addresses_of(cluster.agents)
    try:
        remember(cluster.plan, addresses, None)
        status = cluster.status()
        (cluster_states,) = {w.state for device in status.devices for w in device.workers}
    finally:
        remember(cluster.plan, addresses, cluster.coordinator)
    assert cluster_states == "ready"
    assert status.coordinator.state == "down" and not status.well


def test_an_agent_that_has_not_loaded_its_sub_model(cluster: Served, tmp_path: Path) -> None:
    """pi-1's agent at the address of pi-2."""
    first, second, _ = addresses_of(cluster.agents).values()
    addresses = {"pi-0": first, "pi-1": second, "pi-2": second}
    try:
        remember(cluster.plan, addresses, None)
        found = worker(cluster.status(), "sub2@pi-2")
    finally:
        remember(cluster.plan, addresses_of(cluster.agents), cluster.coordinator)
    assert found.state == "out" and "its agent has no model of the bundle" in found.reason


def test_what_hangs_is_not_waited_for(cluster: Served) -> None:
    """An agent in a black hole, and something that takes connections and says nothing."""
    with proxied(cluster.agents[1].address) as hole, socket.create_server(("127.0.0.1", 0)) as mute:
        hole.set(BLACKHOLE)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        addresses = addresses_of(cluster.agents) | {"pi-1": hole.address}
        try:
            remember(cluster.plan, addresses, None)
            status = survey(find_running(cluster.plan.path, address), timeout_s=0.5)
        finally:
            remember(cluster.plan, addresses_of(cluster.agents), cluster.coordinator)
    assert status.coordinator.state == "down"
    assert "does not answer" in status.coordinator.reason
    assert worker(status, "sub1@pi-1").state != "ready"
    assert worker(status, "sub0@pi-0").state == "ready"


def test_a_coordinator_with_tls_and_a_token(cluster: Served, tmp_path: Path) -> None:
    made = certificates(tmp_path / "tls")
    token = tmp_path / "token"
    token.write_text("a-long-enough-token-of-one-word")
    flags = ["--tls-cert", made.server[0], "--tls-key", made.server[1], "--token-file", token]
    with coordinating(cluster.plan, addresses_of(cluster.agents), *flags) as coordinator:

        def reason(options: AddressOptions) -> str:
            running = find_running(cluster.plan.path, coordinator.address, options)
            return survey(running).coordinator.reason

        assert reason(AddressOptions(tls_ca=made.ca, token_file=token)) == ""
        assert "--token-file" in reason(AddressOptions(tls_ca=made.ca))
        foreign = reason(AddressOptions(tls_ca=made.foreign_ca, token_file=token))
        assert "its certificate is of another authority" in foreign and "--tls-ca" in foreign
        plain = reason(AddressOptions(token_file=token))
        assert "it closed the connection" in plain and "--tls-ca" in plain
        assert "cannot read the token file" in reason(AddressOptions(token_file=tmp_path / "no"))


def test_what_a_launch_asked_for_is_used_to_ask(cluster: Served, tmp_path: Path) -> None:
    """The coordinator's own token, without a word on the command line."""
    token = tmp_path / "token"
    token.write_text("a-long-enough-token-of-one-word")
    addresses = addresses_of(cluster.agents)
    with coordinating(cluster.plan, addresses, "--token-file", token) as coordinator:
        try:
            remember(cluster.plan, addresses, coordinator, token_file=str(token))
            assert cluster.status().well
            remember(cluster.plan, addresses, coordinator)
            assert not cluster.status().well
        finally:
            remember(cluster.plan, addresses, cluster.coordinator)


def test_a_coordinator_of_an_edgevit_without_the_property(cluster: Served) -> None:
    """Its index tells who is in; times are not known then."""
    with Caller(cluster.running()) as caller:
        index = caller._ask("RepositoryIndex", 5.0)
        about = caller._ask("ModelMetadata", 5.0, name=MODEL)
        del about.properties["workers"]
        told = caller._workers(about, index)
        about.properties["workers"] = '{"sub0@pi-0": 3}'
        with pytest.raises(RuntimeFault, match="use the same version"):
            caller._workers(about, index)
    assert sorted(told) == ["sub0@pi-0", "sub1@pi-1", "sub2@pi-0", "sub2@pi-2"]
    assert all(each.usable and each.p50_us is None for each in told.values())

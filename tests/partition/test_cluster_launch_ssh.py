"""Launch and stop with a device whose agent is started over ssh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_tools import eventually, running_agent
from cluster_launch_tools import (
    OPTIONS,
    asked,
    free_port,
    kill,
    launched,
    marked,
    pids,
    silent,
    state_of,
    stopped_at_the_end,
)
from coordinator_tools import DEVICES, TinyPlan, write_plan
from ssh_tools import EDGEVIT, FakeSsh, standing_in

from partition.cluster.launch import DeviceLaunch, Launched, launch
from partition.cluster.stop import stop
from runtime.client import AgentClient


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSsh]:
    """First in the PATH."""
    with standing_in(tmp_path) as fake:
        monkeypatch.setenv("PATH", str(fake.bin), prepend=os.pathsep)
        yield fake


@pytest.fixture
def plan(ssh: FakeSsh, tmp_path: Path) -> Iterator[TinyPlan]:
    with marked(str(tmp_path)):
        found = write_plan(tmp_path / "plan")
        with stopped_at_the_end(found.path):
            yield found


def over_ssh(plan: TinyPlan, address: str, options: str = "[]") -> None:
    """Have pi-1 be a device that asks for a token."""
    (plan.path / "token").write_text("a-word-that-nobody-guesses")
    login = f'{{host: pi@far, command: "{EDGEVIT}", options: {options}}}'
    lines = [
        f"  - {{name: {name}, compute: 1 GMAC/s, targets: [onnx]"
        + (f', address: "{address}", token_file: token, ssh: {login}}}' if name == "pi-1" else "}")
        for name in DEVICES
    ]
    (plan.path / "cluster.yaml").write_text("\n".join(["devices:", *lines]) + "\n")


def pi(found: Launched) -> DeviceLaunch:
    (device,) = (d for d in found.devices if d.name == "pi-1")
    assert device.kind == "ssh"
    return device


def answers(plan: TinyPlan, found: Launched) -> bool:
    assert found.coordinator is not None
    return not asked(plan, found.coordinator.address).missing


def test_launch_launch_kill_launch_stop(plan: TinyPlan, ssh: FakeSsh) -> None:
    address = f"127.0.0.1:{free_port()}"
    over_ssh(plan, address)
    first = launched(plan)
    assert pi(first).started and len(pi(first).pushed) == len(pi(first).loaded) == 1
    assert pi(first).address == address and answers(plan, first)
    (agent,) = ssh.agents()
    calls, state = ssh.calls(), state_of(plan)
    assert "pi-1" not in pids(state) and state.devices["pi-1"].started

    assert not launched(plan).changed
    assert ssh.calls() == calls and state_of(plan) == state

    kill(agent.pid)
    third = launched(plan)
    assert pi(third).started and not pi(third).pushed and not pi(third).loaded
    assert third.coordinator is not None and not third.coordinator.started
    assert answers(plan, third) and len(ssh.agents()) == 1

    stopped = stop(plan.path, silent)
    assert stopped.problems == [] and all(device.left.ended for device in stopped.devices)
    eventually(lambda: not ssh.agents())
    assert stop(plan.path, silent).devices == []
    assert not pi(launched(plan)).pushed


def test_an_agent_of_somebody_else_at_the_address_is_left_running(
    plan: TinyPlan, ssh: FakeSsh, tmp_path: Path
) -> None:
    token = tmp_path / "theirs"
    token.write_text("a-word-that-nobody-guesses")
    with running_agent(tmp_path / "store", "--token-file", token) as theirs:
        over_ssh(plan, theirs.address)
        found = launched(plan)
        assert not pi(found).started and answers(plan, found) and ssh.calls() == 0
        stopped = stop(plan.path, silent)
        (device,) = (d for d in stopped.devices if d.name == "pi-1")
        assert not device.left.ended and len(device.left.unloaded) == 1
        assert theirs.alive() and ssh.calls() == 0


def test_other_options_start_the_agent_anew(plan: TinyPlan, ssh: FakeSsh) -> None:
    address = f"127.0.0.1:{free_port()}"
    over_ssh(plan, address)
    launched(plan)
    (before,) = ssh.agents()
    over_ssh(plan, address, "[--queue, '8']")
    second = launched(plan)
    (after,) = ssh.agents()
    assert after.pid != before.pid and "--queue" in after.cmdline()
    assert pi(second).started and not pi(second).pushed and answers(plan, second)


def test_a_device_that_leaves_the_plan_keeps_nothing(
    plan: TinyPlan, ssh: FakeSsh, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    over_ssh(plan, address)
    launched(plan)
    lines = [f"  - {{name: {name}, compute: 1 GMAC/s, targets: [onnx]}}" for name in DEVICES]
    (plan.path / "cluster.yaml").write_text("\n".join(["devices:", *lines]) + "\n")
    second = launched(plan)
    assert answers(plan, second) and "pi-1" in pids(state_of(plan))
    assert not ssh.agents()
    store = ssh.home / ".local/share/edgevit/cluster/pi-1/store"
    with running_agent(store) as agent, AgentClient(agent.address) as client:
        assert client.describe().bundles == []


def test_a_device_that_cannot_be_logged_in_to(plan: TinyPlan, ssh: FakeSsh) -> None:
    over_ssh(plan, f"127.0.0.1:{free_port()}")
    ssh.failure.write_text("pi@far: Permission denied (publickey).\n")
    found = launch(plan.path, OPTIONS, silent)
    (problem,) = found.problems
    assert problem.startswith("pi-1: ") and "Permission denied" in problem
    assert found.coordinator is not None
    assert asked(plan, found.coordinator.address).missing == [1]
    ssh.failure.unlink()
    assert answers(plan, launched(plan))

    ssh.failure.write_text("ssh: connect to host far port 22: No route to host\n")
    stopped = stop(plan.path, silent)
    assert [problem.split(":")[0] for problem in stopped.problems] == ["pi-1"]
    assert ssh.agents() and state_of(plan).devices["pi-1"].started
    ssh.failure.unlink()
    assert stop(plan.path, silent).problems == []
    eventually(lambda: not ssh.agents())

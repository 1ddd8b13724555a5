"""Launches that go wrong: cut off, at the same time, over a damaged plan or state, over a device
that is not there."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from agent_tools import engines_of, eventually, running_agent
from cli_tools import finish, small_disk, start
from cluster_launch_tools import (
    OPTIONS,
    asked,
    ending,
    free_port,
    kill,
    launched,
    pids,
    running,
    servers,
    silent,
    state_of,
    stopped_at_the_end,
    waiting,
)
from coordinator_tools import DEVICES, TinyPlan

from partition.cluster.launch import launch
from partition.cluster.state import folder_of, locked, read_state, state_file
from partition.cluster.stop import stop
from partition.errors import PartitionError
from runtime.client import AgentClient
from runtime.errors import CheckFailed, RuntimeFault


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[TinyPlan]:
    with ending(tmp_path) as found:
        yield found


def given(plan: TinyPlan, name: str, address: str) -> None:
    """Have cluster.yaml say where a device is."""
    lines = [
        f"  - {{name: {each}, compute: 1 GMAC/s, targets: [onnx]"
        + (f', address: "{address}"}}' if each == name else "}")
        for each in DEVICES
    ]
    (plan.path / "cluster.yaml").write_text("\n".join(["devices:", *lines]) + "\n")


def begun(plan: TinyPlan) -> dict[str, int]:
    """What a launch that runs has written down so far."""
    state = read_state(plan.path)
    return pids(state) if state is not None else {}


@pytest.mark.parametrize("after", ["the first process", "all agents", "the coordinator"])
def test_a_launch_that_is_killed_leaves_nothing_unknown(
    plan: TinyPlan, tmp_path: Path, after: str
) -> None:
    goal = {"the first process": 1, "all agents": 3, "the coordinator": 4}[after]
    words = ("cluster", "launch", plan.path, "--listen", "127.0.0.1:0")
    process = start(*words, cwd=tmp_path)
    try:
        eventually(lambda: len(begun(plan)) >= goal, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # What had no word to run yet goes by itself; nothing else is there that no state knows.
    eventually(lambda: not waiting(str(tmp_path)))
    runs = {name: pid for name, pid in begun(plan).items() if pid in servers(str(tmp_path))}
    assert set(runs.values()) == servers(str(tmp_path))

    launched(plan)  # takes up what is there, without a second one beside it
    after_all = pids(state_of(plan))
    assert runs.items() <= after_all.items()
    assert servers(str(tmp_path)) == set(after_all.values()) and len(after_all) == 4
    coordinator = state_of(plan).coordinator
    assert coordinator is not None and coordinator.address is not None
    assert not asked(plan, coordinator.address).missing


def test_a_stop_ends_what_a_killed_launch_had_started(plan: TinyPlan, tmp_path: Path) -> None:
    process = start("cluster", "launch", plan.path, "--listen", "127.0.0.1:0", cwd=tmp_path)
    try:
        eventually(lambda: len(begun(plan)) >= 2, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    stop(plan.path, silent)
    eventually(lambda: not running(str(tmp_path)))


def test_ctrl_c_says_what_became_of_it(plan: TinyPlan, tmp_path: Path) -> None:
    process = start("cluster", "launch", plan.path, "--listen", "127.0.0.1:0", cwd=tmp_path)
    eventually(lambda: len(begun(plan)) >= 1, 60)
    process.send_signal(signal.SIGINT)
    answer = finish(process, 60)
    assert answer.code == 130 and f"edgevit cluster stop {plan.path}" in answer.err
    eventually(lambda: servers(str(tmp_path)) <= set(begun(plan).values()))
    launched(plan)


def test_two_launches_at_once(plan: TinyPlan, tmp_path: Path) -> None:
    words = ("cluster", "launch", plan.path, "--listen", "127.0.0.1:0")
    answers = [finish(p, 120) for p in [start(*words, cwd=tmp_path) for _ in range(2)]]
    codes = [answer.code for answer in answers]
    assert 0 in codes and set(codes) <= {0, 2}
    for answer in answers:
        assert answer.code == 0 or "wait for it" in answer.err
    assert servers(str(tmp_path)) == set(pids(state_of(plan)).values())
    assert len(pids(state_of(plan))) == 4


def test_only_one_at_a_time(plan: TinyPlan, tmp_path: Path) -> None:
    with locked(plan.path):
        for work in (lambda: launch(plan.path, OPTIONS, silent), lambda: stop(plan.path, silent)):
            with pytest.raises(PartitionError, match="at work; wait for it"):
                work()
    assert not running(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema_version": 2}', "\x00\xff", '{"schema_version": 1, "pid": 1}'],
)
def test_a_state_that_cannot_be_read_is_one_clear_error(
    plan: TinyPlan, tmp_path: Path, text: str
) -> None:
    folder_of(plan.path).mkdir(mode=0o700)
    state_file(plan.path).write_bytes(text.encode("latin-1"))
    for work in (lambda: launch(plan.path, OPTIONS, silent), lambda: stop(plan.path, silent)):
        with pytest.raises(
            PartitionError, match=r"state\.json cannot be read .*pgrep -af .*remove"
        ):
            work()
    assert state_file(plan.path).read_bytes() == text.encode("latin-1")
    assert not running(str(tmp_path))
    state_file(plan.path).unlink()


def test_others_may_not_write_the_state(plan: TinyPlan) -> None:
    folder_of(plan.path).mkdir()
    folder_of(plan.path).chmod(0o770)
    with pytest.raises(PartitionError, match="chmod 700"):
        launch(plan.path, OPTIONS, silent)
    folder_of(plan.path).chmod(0o700)


def test_a_damaged_plan_is_refused_before_anything_starts(plan: TinyPlan, tmp_path: Path) -> None:
    model = plan.bundle(1) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckFailed, match="sub1"):
        launch(plan.path, OPTIONS, silent)
    assert not folder_of(plan.path).exists() and not running(str(tmp_path))


def test_an_option_that_cannot_be_is_refused_before_anything_starts(
    plan: TinyPlan, tmp_path: Path
) -> None:
    for wrong in (
        replace(OPTIONS, listen="0.0.0.0:0"),
        replace(OPTIONS, listen="here"),
        replace(OPTIONS, token_file=tmp_path / "none"),
        replace(OPTIONS, tls_cert=tmp_path / "none"),
        replace(OPTIONS, worker_timeout_s=float("nan")),
    ):
        with pytest.raises(RuntimeFault):
            launch(plan.path, wrong, silent)
    assert not folder_of(plan.path).exists() and not running(str(tmp_path))


def test_a_port_that_is_taken(plan: TinyPlan) -> None:
    with running_agent(plan.path.parent / "store") as other:
        found = launch(plan.path, replace(OPTIONS, listen=other.address), silent)
        (problem,) = found.problems
        assert problem.startswith("coordinator: ") and "choose another address" in problem
        assert state_of(plan).coordinator is None
        before = pids(state_of(plan))
        second = launched(plan)
        assert {n: p for n, p in pids(state_of(plan)).items() if n} == before
        assert second.coordinator is not None
        assert not asked(plan, second.coordinator.address).missing
        stop(plan.path, silent)
        assert other.alive()


def test_a_given_device_that_is_down_and_comes(plan: TinyPlan, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    given(plan, "pi-1", address)
    found = launch(plan.path, OPTIONS, silent)
    (problem,) = found.problems
    assert problem.startswith("pi-1: ") and address in problem
    assert found.coordinator is not None
    assert asked(plan, found.coordinator.address).missing == [1]

    with running_agent(tmp_path / "store", listen=address) as agent:
        second = launched(plan)
        assert second.coordinator == replace(found.coordinator, started=False)
        assert not asked(plan, found.coordinator.address).missing
        assert "pi-1" not in pids(state_of(plan))
        with AgentClient(address) as client:
            before = client.describe()
            stopped = stop(plan.path, silent)
            after = client.describe()
        assert stopped.problems == [] and agent.alive()
        assert [m.state for m in before.models if m.target] == ["READY"]
        assert [m for m in after.models if m.target] == []  # what launch loaded
        assert after.bundles == before.bundles  # so that nothing travels again
        assert engines_of(agent.pid) == []
        third = launched(plan)
        (device,) = (d for d in third.devices if d.name == "pi-1")
        assert (device.started, device.pushed, len(device.loaded)) == (False, [], 1)
        kill(agent.pid)

    left = stop(plan.path, silent)
    assert [problem.split(":")[0] for problem in left.problems] == ["pi-1"]
    assert not pids(state_of(plan))
    with running_agent(tmp_path / "store", listen=address):  # which loads it again
        assert stop(plan.path, silent).problems == []
        assert stop(plan.path, silent).devices == []


def test_what_the_owner_of_a_device_loaded_stays(plan: TinyPlan, tmp_path: Path) -> None:
    with running_agent(tmp_path / "store", load=[plan.bundle(1)]) as agent:
        given(plan, "pi-1", agent.address)
        found = launched(plan)
        (device,) = (d for d in found.devices if d.name == "pi-1")
        assert not device.pushed
        stop(plan.path, silent)
        with AgentClient(agent.address) as client:
            names = [m.name for m in client.describe().models if m.state == "READY"]
        assert names == ["sub1"]


def test_a_device_that_moves_is_left_where_it_was(plan: TinyPlan, tmp_path: Path) -> None:
    with (
        running_agent(tmp_path / "one") as one,
        running_agent(tmp_path / "two") as two,
        AgentClient(one.address) as old,
    ):
        given(plan, "pi-1", one.address)
        launched(plan)
        given(plan, "pi-1", two.address)
        second = launched(plan)
        assert second.coordinator is not None
        assert not asked(plan, second.coordinator.address).missing
        there = old.describe()
        assert [m for m in there.models if m.target] == [] and there.bundles == []
        stop(plan.path, silent)


def test_an_agent_that_cannot_start_says_why(plan: TinyPlan) -> None:
    folder = folder_of(plan.path)
    (folder / "stores").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "stores" / "pi-1").write_text("in the way")
    found = launch(plan.path, OPTIONS, silent)
    first, second = found.problems
    assert first.startswith("pi-1: ") and "stores/pi-1" in first and "logs/pi-1.log" in first
    assert second.startswith("coordinator: ") and "pi-1" in second
    (folder / "stores" / "pi-1").unlink()
    launched(plan)


@pytest.mark.parametrize("pages", [0, 6, 24])
def test_a_full_disk(plan: TinyPlan, tmp_path: Path, pages: int) -> None:
    """The less room, the earlier it ends: at the state, at the agents, at their bundles."""
    try:
        with small_disk(tmp_path / "disk", "2m") as disk:
            shutil.copytree(plan.path, disk / "plan")
            full = replace(plan, path=disk / "plan")
            with stopped_at_the_end(full.path):
                (disk / "room").write_bytes(bytes(4096 * pages))
                with (disk / "rubbish").open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                (disk / "room").unlink()
                try:
                    problems = launch(full.path, OPTIONS, silent).problems
                except PartitionError as error:
                    problems = [str(error)]
                assert problems and "Traceback" not in "".join(problems)
                assert servers(str(tmp_path)) <= set(begun(full).values())
                (disk / "rubbish").unlink()
                launched(full)
    except PermissionError as error:
        pytest.skip(str(error))

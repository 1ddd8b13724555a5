"""A plan is launched, launched again, mended, changed and stopped, with real agents."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from agent_tools import (
    certificates,
    channel_to,
    credentials,
    engines_of,
    eventually,
    refusal,
)
from cluster_launch_tools import (
    OPTIONS,
    asked,
    ending,
    gone,
    kill,
    launched,
    marked,
    pids,
    running,
    servers,
    silent,
    state_of,
    stopped_at_the_end,
)
from coordinator_tools import DEVICES, MODEL, TinyPlan, is_right, pictures, predict, write_plan

from partition.cluster import coordinator as coordinator_part
from partition.cluster import local as local_part
from partition.cluster.launch import Launched
from partition.cluster.state import folder_of
from partition.cluster.stop import stop
from runtime.client import Access, AgentClient, Device

THREE = set(DEVICES[:3])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPlan]:
    """For the tests that leave a whole cluster; each launches what is not there from before."""
    with ending(tmp_path_factory.mktemp("kept")) as found:
        yield found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[TinyPlan]:
    """One that was never launched."""
    with ending(tmp_path) as found:
        yield found


def devices_of(plan: TinyPlan) -> dict[str, Device]:
    """What the agents themselves say."""
    found = {}
    for name, device in state_of(plan).devices.items():
        assert device.address is not None
        with AgentClient(Access(device.address)) as agent:
            found[name] = agent.describe()
    return found


def address_of(found: Launched) -> str:
    assert found.coordinator is not None
    return found.coordinator.address


def logs_of(plan: TinyPlan) -> dict[str, bytes]:
    """What agents and coordinator said, every upload and load included."""
    return {file.name: file.read_bytes() for file in folder_of(plan.path).rglob("*.log")}


def test_launch_serves_the_plan_and_stop_leaves_nothing(fresh: TinyPlan, tmp_path: Path) -> None:
    found = launched(fresh)
    assert found.changed
    assert [device.name for device in found.devices] == list(DEVICES[:3])
    for device in found.devices:
        assert device.started and len(device.pushed) == len(device.loaded) == 1
    state = state_of(fresh)
    assert set(pids(state).values()) == servers(str(tmp_path))
    assert len(running(str(tmp_path))) == 7  # and an engine for each agent
    for seed in range(5):
        assert not asked(fresh, address_of(found), seed).missing
    assert folder_of(fresh.path).stat().st_mode & 0o777 == 0o700

    stopped = stop(fresh.path, silent)
    assert stopped.problems == [] and stopped.coordinator
    assert {d.name for d in stopped.devices} == THREE and all(d.left.ended for d in stopped.devices)
    eventually(lambda: not running(str(tmp_path)))
    again = stop(fresh.path, silent)
    assert (again.coordinator, again.devices, again.problems) == (False, [], [])
    said = b"".join(logs_of(fresh).values())
    assert b"Traceback" not in said and said.count(b'"event": "ended"') == 4


def test_a_second_launch_changes_nothing(plan: TinyPlan) -> None:
    launched(plan)
    state, logs, devices = state_of(plan), logs_of(plan), devices_of(plan)
    second = launched(plan)
    assert not second.changed
    assert state_of(plan) == state
    assert logs_of(plan) == logs
    for name, device in devices_of(plan).items():
        before = devices[name]
        assert (device.generation, device.device_id) == (before.generation, before.device_id)
        assert device.models == before.models and device.bundles == before.bundles


def test_agents_here_read_inputs_of_their_own(plan: TinyPlan) -> None:
    found = launched(plan)
    x = pictures(1, 5)
    for number, name in enumerate(DEVICES[:3]):
        layout = (0, 3, 1, 2) if number != 1 else (0, 1, 2, 3)
        np.save(folder_of(plan.path) / "inputs" / name / "camera.npy", x.transpose(layout))
    with AgentClient(address_of(found)) as client:
        answer = client.infer(MODEL, input_ref="camera")
    assert answer.parameters["degraded"] is False
    np.testing.assert_allclose(answer.output, plan.reference(x), rtol=1e-4, atol=1e-4)


def test_replicas_are_brought_too(tmp_path: Path) -> None:
    with marked(str(tmp_path)):
        plan = write_plan(tmp_path / "plan", replicas=(("pi-1",), ("pi-3",), ()))
        with stopped_at_the_end(plan.path):
            found = launched(plan)
            served = {device.name: device.submodels for device in found.devices}
            assert served == {
                "pi-0": ["sub0"], "pi-1": ["sub1", "sub0"], "pi-2": ["sub2"], "pi-3": ["sub1"],
            }  # fmt: skip
            assert not launched(plan).changed
            kill(pids(state_of(plan))["pi-0"])
            assert not asked(plan, address_of(found)).missing


def test_after_a_stop_nothing_travels_again_and_the_addresses_are_the_same(plan: TinyPlan) -> None:
    first = launched(plan)
    addresses = {name: device.address for name, device in state_of(plan).devices.items()}
    stop(plan.path, silent)
    second = launched(plan)
    assert all(d.started and not d.pushed and not d.loaded for d in second.devices)
    assert {name: device.address for name, device in state_of(plan).devices.items()} == addresses
    assert address_of(first) != "" and not asked(plan, address_of(second)).missing


def test_a_killed_agent_comes_back_where_it_was(plan: TinyPlan) -> None:
    first = launched(plan)
    before, ids = pids(state_of(plan)), devices_of(plan)
    kill(before["pi-1"])
    eventually(lambda: asked(plan, address_of(first)).missing == [1])
    second = launched(plan)
    after = pids(state_of(plan))
    assert after.pop("pi-1") != before.pop("pi-1") and after == before
    assert address_of(second) == address_of(first)
    assert not asked(plan, address_of(first)).missing  # launch waited for it
    (device,) = (d for d in second.devices if d.name == "pi-1")
    assert device.started and device.pushed == device.loaded == []
    again = devices_of(plan)["pi-1"]
    assert again.device_id == ids["pi-1"].device_id
    assert again.generation == ids["pi-1"].generation + 1


@contextmanager
def taken(address: str) -> Iterator[None]:
    """Somebody else listens there, once whoever did has gone with his last thread."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, port = address.split(":")

        def listens() -> bool:
            with suppress(OSError):
                other.bind((host, int(port)))
                other.listen()
                return True
            return False

        eventually(listens)
        yield


def test_an_agent_whose_port_is_taken_listens_elsewhere(plan: TinyPlan) -> None:
    launched(plan)
    before = state_of(plan)
    address = before.devices["pi-2"].address
    assert address is not None
    kill(pids(before)["pi-2"])
    with taken(address):
        second = launched(plan)
    after = state_of(plan)
    assert after.devices["pi-2"].address not in (None, address)
    assert pids(after)[""] != pids(before)[""]  # it has to be told
    assert not asked(plan, address_of(second)).missing


def test_a_killed_coordinator_comes_back_where_it_was(plan: TinyPlan) -> None:
    first = launched(plan)
    before = pids(state_of(plan))
    kill(before[""])
    second = launched(plan)
    after = pids(state_of(plan))
    assert after.pop("") != before.pop("") and after == before
    assert address_of(second) == address_of(first)
    assert not any(device.changed for device in second.devices)
    assert not asked(plan, address_of(first)).missing


def test_a_hung_agent_and_a_hung_coordinator_are_replaced(
    plan: TinyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (local_part, coordinator_part):
        monkeypatch.setattr(part, "ANSWER_S", 1.0)
        monkeypatch.setattr(part, "END_S", 0.5)
    launched(plan)
    before = pids(state_of(plan))
    hung = [psutil.Process(before[name]) for name in ("pi-0", "")]
    for process in hung:
        process.suspend()
    second = launched(plan)
    for process in hung:
        gone(process)
    after = pids(state_of(plan))
    assert {name for name in after if after[name] != before[name]} == {"pi-0", ""}
    assert not asked(plan, address_of(second)).missing


def test_a_changed_plan_takes_the_place_of_the_old_one(fresh: TinyPlan, tmp_path: Path) -> None:
    first = launched(fresh)
    before = pids(state_of(fresh))
    other = write_plan(tmp_path / "other", seed=1)
    shutil.rmtree(fresh.path)
    other.path.rename(fresh.path)
    other = replace(other, path=fresh.path)
    second = launched(other)
    after = pids(state_of(other))
    assert after.pop("") != before.pop("") and after == before  # the agents stay
    assert address_of(second) == address_of(first)
    for name, device in devices_of(other).items():
        (model,) = (m for m in device.models if m.state == "READY")
        (bundle,) = device.bundles  # nothing of the old plan is left
        assert model.name == f"edvit-{other.digest[:8]}-sub{name[-1]}/onnx"
        assert bundle.names == [model.name.partition("/")[0]]
    assert not asked(other, address_of(second)).missing
    assert not launched(other).changed


def test_a_plan_that_changes_between_stop_and_launch(fresh: TinyPlan, tmp_path: Path) -> None:
    launched(fresh)
    stop(fresh.path, silent)
    other = write_plan(tmp_path / "other", seed=1, layouts=("NCHW", "NHWC"))
    shutil.rmtree(fresh.path)
    other.path.rename(fresh.path)
    other = replace(other, path=fresh.path)
    second = launched(other)
    assert set(state_of(other).devices) == {"pi-0", "pi-1"}
    assert sorted(p.name for p in (folder_of(fresh.path) / "stores").iterdir()) == ["pi-0", "pi-1"]
    assert all(len(device.bundles) == 1 for device in devices_of(other).values())
    assert not asked(other, address_of(second)).missing


def test_a_device_that_the_plan_no_longer_has_is_left(fresh: TinyPlan, tmp_path: Path) -> None:
    launched(fresh)
    leaving = psutil.Process(pids(state_of(fresh))["pi-2"])
    other = write_plan(tmp_path / "other", layouts=("NCHW", "NHWC"))
    shutil.rmtree(fresh.path)
    other.path.rename(fresh.path)
    second = launched(replace(other, path=fresh.path))
    gone(leaving)
    assert set(pids(state_of(fresh))) == {"pi-0", "pi-1", ""}
    assert not asked(other, address_of(second)).missing


def test_other_options_restart_the_coordinator_alone(plan: TinyPlan, tmp_path: Path) -> None:
    launched(plan)
    before = pids(state_of(plan))
    token = tmp_path / "token"
    token.write_text("a-word-that-nobody-guesses\n")
    options = replace(OPTIONS, token_file=token, metrics="127.0.0.1:0", worker_timeout_s=2.5)
    second = launched(plan, options)
    after = pids(state_of(plan))
    assert after.pop("") != before.pop("") and after == before
    assert second.coordinator is not None and second.coordinator.metrics is not None
    with channel_to(address_of(second)) as channel:
        code, _ = refusal(lambda: predict(channel, pictures(1)))
    assert code.name == "UNAUTHENTICATED"
    assert not launched(plan, options).changed

    token.write_text("another-word-that-nobody-guesses\n")  # which it reads at its start
    third = launched(plan, options)
    assert third.coordinator is not None and third.coordinator.started


def test_a_coordinator_with_certificates(
    plan: TinyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch has no certificate to call it with, and knows all the same whether it hangs."""
    monkeypatch.setattr(coordinator_part, "ANSWER_S", 1.0)
    monkeypatch.setattr(coordinator_part, "END_S", 0.5)
    pems = certificates(tmp_path / "pems")
    cert, key = pems.server
    options = replace(OPTIONS, tls_cert=cert, tls_key=key, tls_client_ca=pems.ca)
    first = launched(plan, options)
    assert not launched(plan, options).changed
    x = pictures(1)
    with channel_to(address_of(first), credentials(pems.ca, pems.client)) as channel:
        assert is_right(plan, x, predict(channel, x))
    with channel_to(address_of(first)) as channel:
        assert refusal(lambda: predict(channel, x))[0].name == "UNAVAILABLE"
    psutil.Process(pids(state_of(plan))[""]).suspend()
    second = launched(plan, options)
    assert second.coordinator == first.coordinator and not launched(plan, options).changed


def test_an_engine_that_died_is_not_for_a_launch_to_mend(plan: TinyPlan) -> None:
    first = launched(plan)
    agent = pids(state_of(plan))["pi-0"]
    (engine,) = engines_of(agent)
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: not asked(plan, address_of(first)).missing)  # its agent does
    launched(plan)
    assert pids(state_of(plan))["pi-0"] == agent

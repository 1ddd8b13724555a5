"""What a stop ends, with and without a plan, and what it must leave alone; a launch over the
processes of others."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from agent_tools import eventually
from cluster_launch_tools import (
    asked,
    ending,
    kill,
    launched,
    pids,
    running,
    silent,
    state_of,
)
from coordinator_tools import TinyPlan

from partition.cluster.state import state_file, write_state
from partition.cluster.stop import stop
from partition.errors import PartitionError


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPlan]:
    """For the tests that begin with a whole cluster, wherever it comes from."""
    with ending(tmp_path_factory.mktemp("kept")) as found:
        yield found


def test_a_state_that_names_no_process_of_ours_is_refused(kept: TinyPlan) -> None:
    launched(kept)
    sound = state_file(kept.path).read_text()
    for pid in (0, 1, -1):
        value = json.loads(sound)
        value["coordinator"]["process"]["pid"] = pid
        state_file(kept.path).write_text(json.dumps(value))
        with pytest.raises(PartitionError, match="pid"):
            stop(kept.path, silent)
    state_file(kept.path).write_text(sound)


def test_a_stop_leaves_a_process_alone_that_has_the_number_of_ours(
    kept: TinyPlan,
) -> None:
    """Numbers are given again, after a reboot from the beginning; the time of the start is not."""
    launched(kept)
    state = state_of(kept)
    foreign = [psutil.Process(pid) for pid in pids(state).values()]
    for process in [d.process for d in state.devices.values()] + [
        state.coordinator.process if state.coordinator else None
    ]:
        assert process is not None
        process.created -= 3600
    write_state(kept.path, state)
    stopped = stop(kept.path, silent)
    assert not stopped.coordinator and not any(d.left.ended for d in stopped.devices)
    time.sleep(0.5)
    assert all(process.is_running() for process in foreign) and len(foreign) == 4
    for process in foreign:
        process.terminate()
    eventually(lambda: not running(str(kept.path.parent)))


def test_after_a_reboot_all_is_started_anew(kept: TinyPlan) -> None:
    """And their old numbers are those of others; here all of this test's own process."""
    launched(kept)
    state = state_of(kept)
    for pid in pids(state).values():
        kill(pid)
    assert state.coordinator is not None
    for one in (state.coordinator, *state.devices.values()):
        assert one.process is not None
        one.process.pid = os.getpid()
    write_state(kept.path, state)
    found = launched(kept)
    assert found.coordinator is not None and found.coordinator.started
    assert all(device.started and not device.pushed for device in found.devices)
    assert not asked(kept, found.coordinator.address).missing


def test_a_stop_needs_no_plan(tmp_path: Path) -> None:
    with ending(tmp_path) as plan:
        launched(plan)
        shutil.rmtree(plan.path)
        assert stop(plan.path, silent).problems == []
        eventually(lambda: not running(str(tmp_path)))


def test_a_stop_where_all_have_gone(kept: TinyPlan) -> None:
    launched(kept)
    for pid in pids(state_of(kept)).values():
        kill(pid)
    stopped = stop(kept.path, silent)
    assert stopped.problems == [] and not stopped.coordinator
    assert not any(device.left.ended for device in stopped.devices)


def test_a_stop_ends_what_does_not_listen(kept: TinyPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.cluster.leave.END_S", 0.5)
    monkeypatch.setattr("partition.cluster.coordinator.END_S", 0.5)
    launched(kept)
    for pid in pids(state_of(kept)).values():
        psutil.Process(pid).suspend()
    stopped = stop(kept.path, silent)
    assert stopped.coordinator and all(device.left.ended for device in stopped.devices)

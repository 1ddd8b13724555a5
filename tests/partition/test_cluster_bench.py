"""`bench`: numbers that are those of its samples, degraded answers apart, errors counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_tools import eventually
from cluster_see_tools import METRICS, Served, once_seen, served, until_degraded
from coordinator_tools import DEVICES, addresses_of, coordinating, pictures, write_plan
from shaping_proxy import proxied

from partition.cluster.asking import Caller
from partition.cluster.bench import STAGE_NAMES, WARM_UP, BenchOptions, bench, groups_of
from partition.cluster.bench_record import ClusterRun, ClusterSample
from partition.cluster.load import drive
from partition.cluster.running import find_running
from partition.serving.service import STAGES
from runtime.errors import CheckFailed, RuntimeFault


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("cluster")
    inputs = [home / name for name in DEVICES[:3]]
    for folder in inputs:
        folder.mkdir()
        x = pictures(1)
        np.save(folder / "door.npy", x if folder.name == "pi-1" else x.transpose(0, 3, 1, 2))
    with served(write_plan(home / "plan"), home, inputs=inputs) as found:
        yield found


def measured(cluster: Served, **options: object) -> ClusterRun:
    return bench(cluster.running(), BenchOptions(**options), lambda text, done: None)


@pytest.fixture(scope="module")
def run(cluster: Served) -> ClusterRun:
    return measured(cluster, requests=150)


def test_every_request_is_a_sample(run: ClusterRun) -> None:
    assert len(run.samples) == 150 and run.failed == 0
    assert [group.kind for group in run.groups] == ["whole"]
    starts = [sample.at_ms for sample in run.samples]
    assert starts == sorted(starts) and starts[-1] < run.duration_s * 1e3
    assert run.stages == ["client", *(stage.removesuffix("_us") for stage in STAGES)]
    assert all(len(sample.stages_ms) == len(run.stages) for sample in run.samples)


def test_statistics_are_those_of_the_samples(run: ClusterRun) -> None:
    (group,) = run.groups
    ms = np.array([sample.ms for sample in run.samples])
    stats = group.latency
    found = [stats.p50, stats.p90, stats.p95, stats.p99, stats.min, stats.mean, stats.std]
    wanted = [*np.percentile(ms, [50, 90, 95, 99]), ms.min(), ms.mean(), ms.std(ddof=1)]
    np.testing.assert_allclose(found, wanted)
    stages = np.array([sample.stages_ms for sample in run.samples])
    np.testing.assert_allclose([s.latency.mean for s in group.stages], stages.mean(0))
    np.testing.assert_allclose([s.share for s in group.stages], stages.mean(0) / ms.mean())
    assert group.per_s == pytest.approx(150 / run.duration_s)


def test_the_stages_sum_to_what_the_caller_sees(run: ClusterRun) -> None:
    (group,) = run.groups
    assert abs(group.unaccounted_ms) < 0.05 * group.latency.mean
    assert group.unaccounted_ms == pytest.approx(
        group.latency.mean - sum(stage.latency.mean for stage in group.stages)
    )
    assert all(stage.latency.min >= 0 for stage in group.stages[1:])


def test_every_whole_answer_has_one_straggler(run: ClusterRun) -> None:
    assert {w.name: w.straggler for w in run.workers if w.straggler} == Counter(
        sample.straggler for sample in run.samples
    )
    assert [w.classes for w in run.workers] == [["ant", "dog"], ["bee", "eel"], ["cat", "fox"]]
    assert all(w.usable and (w.p50_ms or 0) > 0 for w in run.workers)


def test_facts_of_the_devices_and_the_prediction(cluster: Served, run: ClusterRun) -> None:
    assert [device.address for device in run.devices] == [a.address for a in cluster.agents]
    for device in run.devices:
        assert device.environment is not None and device.environment.cores_logical
        assert device.engine is not None and device.engine.startswith("onnxruntime ")
        assert device.threads == [1] and device.predicted_ms == 1000.0
    assert run.predicted_ms == 1000.0
    assert run.plan_digest == cluster.plan.digest
    assert "a random picture, float32 1×3×16×16, 3072 bytes" in str(run.method["input"])


def test_the_record_is_json_and_back(run: ClusterRun) -> None:
    assert ClusterRun.model_validate_json(run.model_dump_json(exclude_none=True)) == run


def test_several_at_once_and_a_photo(cluster: Served) -> None:
    run = measured(cluster, requests=60, in_flight=4, picture=pictures(1)[0])
    assert len(run.samples) == 60
    spans = [(s.at_ms, s.at_ms + s.ms) for s in run.samples]
    overlaps = [sum(a < end and begin < b for a, b in spans) for begin, end in spans]
    assert max(overlaps) >= 2
    assert "a photo" in str(run.method["input"])


def test_a_device_far_away_is_the_straggler(cluster: Served) -> None:
    """30 ms each way to pi-1: its network, in which the others wait."""
    with proxied(cluster.agents[1].address) as far:
        far.delay_s = 0.03
        addresses = addresses_of(cluster.agents) | {"pi-1": far.address}
        with coordinating(cluster.plan, addresses) as coordinator:
            running = find_running(cluster.plan.path, coordinator.address)
            run = bench(running, BenchOptions(requests=20), lambda text, done: None)
    assert [w.straggler for w in run.workers] == [0, 20, 0]
    by_name = {stage.name: stage.latency for stage in run.groups[0].stages}
    assert by_name["network"].p50 > 50
    own = {w.name: w.p50_ms or 0 for w in run.workers}
    assert own["sub1@pi-1"] > max(50, own["sub0@pi-0"], own["sub2@pi-2"])


def test_degraded_answers_are_in_no_number_of_whole_ones(tmp_path: Path) -> None:
    """An agent dies in the middle."""
    with served(write_plan(tmp_path / "plan"), tmp_path, flags=METRICS) as cluster:
        with once_seen(cluster, WARM_UP + 10, cluster.agents[2].kill):
            run = measured(cluster, requests=100_000, limit_s=2.0)
        whole, degraded = run.group("whole"), run.group("degraded")
        assert whole is not None and degraded is not None and run.failed == 0
        assert whole.latency.n + degraded.latency.n == len(run.samples)
        for group in (whole, degraded):
            ms = [sample.ms for sample in run.samples if sample.kind == group.kind]
            assert group.latency.n == len(ms)
            assert group.latency.p50 == pytest.approx(np.median(ms))
        assert {tuple(s.missing) for s in run.samples if s.kind == "degraded"} == {("sub2",)}
        assert sum(w.straggler for w in run.workers) == whole.latency.n
        assert [w.usable for w in run.workers] == [True, True, False]
        until_degraded(cluster, "sub2")
        run = measured(cluster, requests=20)
        assert [group.kind for group in run.groups] == ["degraded"]
        assert run.groups[0].latency.n == 20
        assert sum(w.straggler for w in run.workers) == 0


def test_requests_without_an_answer_are_counted(tmp_path: Path) -> None:
    """Every agent dies in the middle."""
    with served(write_plan(tmp_path / "plan"), tmp_path, flags=METRICS) as cluster:

        def kill_all() -> None:
            for agent in cluster.agents:
                agent.kill()

        with once_seen(cluster, WARM_UP + 10, kill_all):
            run = measured(cluster, requests=100_000, limit_s=2.0)
        assert run.failed > 0
        assert f"with {len(run.samples) + run.failed} of 100000 requests" in run.notes[0]
        assert sum(group.latency.n for group in run.groups) == len(run.samples)
        assert {error.status for error in run.errors} == {"UNAVAILABLE"}
        assert all("no sub-model of 'tiny-vit' can answer" in e.reason for e in run.errors)
        with pytest.raises(CheckFailed, match=r"none of 20 requests was answered: .*no sub-model"):
            measured(cluster, requests=5)


def test_a_coordinator_that_is_down_or_of_another_plan(cluster: Served, tmp_path: Path) -> None:
    with coordinating(cluster.plan, addresses_of(cluster.agents)) as gone:
        address = gone.address
    running = find_running(cluster.plan.path, address)
    with pytest.raises(CheckFailed, match=f"edgevit cluster launch {cluster.plan.path}"):
        bench(running, BenchOptions(), lambda text, done: None)
    other = find_running(write_plan(tmp_path / "other", seed=3).path, cluster.coordinator.address)
    with pytest.raises(CheckFailed, match="serves the plan"):
        bench(other, BenchOptions(), lambda text, done: None)


def test_no_request_is_begun_after_the_limit(cluster: Served) -> None:
    run = measured(cluster, requests=100_000, limit_s=0.2)
    assert 0 < len(run.samples) < 100_000
    assert run.notes == [f"Stopped after 0.2 s with {len(run.samples)} of 100000 requests sent."]


def test_what_ends_a_load_early_ends_its_calls(cluster: Served) -> None:
    """As Ctrl-C does, which comes while the main thread waits for the others."""
    with Caller(cluster.running()) as caller:
        view = caller.look(5.0)
        request = caller.request(view, pictures(1).transpose(0, 3, 1, 2), None)

        def interrupted(done: float) -> None:
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            drive(caller, request, count=10**6, in_flight=3, limit_s=60.0, tell=interrupted)
        eventually(lambda: threading.active_count() <= before)
        with pytest.raises((RuntimeFault, ValueError)):
            caller.infer(request)


def test_local_input_is_told_as_such(cluster: Served) -> None:
    """Each agent reads the picture itself; the answer says how old it was."""
    run = measured(cluster, requests=10, input_ref="door")
    with pytest.raises(CheckFailed, match="none of 20 requests was answered"):
        measured(cluster, requests=5, input_ref="gate")
    assert run.mode == "local-input"
    group = run.groups[0]
    assert group.input_age is not None and group.input_age.min > 0
    assert group.input_spread is not None
    assert run.method["input"] == "'door', which every worker reads itself"


def test_groups_of_samples_by_hand() -> None:
    stages = [0.0] * len(STAGE_NAMES)

    def sample(ms: float, client: float, *missing: str) -> ClusterSample:
        return ClusterSample(
            at_ms=0.0, ms=ms, stages_ms=[client, *stages[1:]], straggler="a@b", together=1,
            missing=list(missing),
        )  # fmt: skip

    found = groups_of([sample(4, 3), sample(6, 6), sample(100, 1, "a")], 2.0)
    whole, degraded = found
    assert (whole.kind, whole.per_s, whole.latency.mean, whole.unaccounted_ms) == (
        "whole", 1.0, 5.0, 0.5,
    )  # fmt: skip
    assert (degraded.kind, degraded.latency.p50, degraded.per_s) == ("degraded", 100.0, 0.5)
    assert degraded.latency.std == 0.0 and degraded.input_age is None

"""`edgevit cluster status|predict|bench` as a person runs them, on real devices' agents."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_tools import eventually
from cli_tools import Answer, edgevit, finish, hide, start
from cluster_see_tools import (
    METRICS,
    Served,
    photo,
    remember,
    seen_by,
    served,
    until_degraded,
)
from coordinator_tools import (
    LABELS,
    SIDE,
    addresses_of,
    agents_of,
    coordinating,
    pictures,
    write_plan,
)

from edgevit.data import prepare, read_picture
from partition.cluster.bench_record import ClusterRun
from partition.cluster.state import folder_of

CONVERTERS = ["torch", "torchvision", "executorch", "coremltools", "litert_torch", "onnx", "timm"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """sub2 has a replica on pi-0."""
    base = tmp_path_factory.mktemp("cluster")
    plan = write_plan(base / "plan", replicas=((), (), ("pi-0",)))
    with served(plan, base, ((0, 2), (1,), (2,)), METRICS) as found:
        yield found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return photo(tmp_path / "noise.png")


def expected(cluster: Served, picture: Path, lost: tuple[int, ...] = ()) -> np.ndarray:
    """Softmax of torch's logits for the picture as the plan prepares it."""
    x = prepare(read_picture(picture), SIDE, SIDE, 1.0, "bicubic")
    logits = cluster.plan.reference(x[None], lost)[0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


def test_status_shows_every_worker(cli: Callable[..., Answer], cluster: Served) -> None:
    answer = cli("cluster", "status", cluster.plan.path)
    assert (answer.code, answer.err) == (0, "")
    rows = [line.split() for line in answer.out.splitlines() if "sub" in line and "@" not in line]
    assert rows[0][:4] == ["device", "address", "sub-model", "state"]
    cells = [row[:4] for row in rows[1:]]
    first, second, third = (agent.address for agent in cluster.agents)
    assert cells[0] == ["pi-0", first, "sub0", "ready"]
    assert cells[1][:3] == ["sub2", "(replica)", "ready"]
    assert cells[2:] == [["pi-1", second, "sub1", "ready"], ["pi-2", third, "sub2", "ready"]]
    assert answer.out.count("now") == 3
    digest = cluster.plan.digest[:12]
    assert f"Coordinator at {cluster.coordinator.address}, plan {digest}: ready" in answer.out
    assert f"Next: edgevit cluster predict {cluster.plan.path} PHOTO" in answer.out


def test_status_as_json(cli: Callable[..., Answer], cluster: Served) -> None:
    found = cli("cluster", "status", cluster.plan.path, "--json").json()
    assert found["well"] is True and found["plan_digest"] == cluster.plan.digest
    assert found["coordinator"]["state"] == "ready"
    workers = [w for device in found["devices"] for w in device["workers"]]
    assert [(w["submodel"], w["role"], w["state"]) for w in workers] == [
        ("sub0", "primary", "ready"), ("sub2", "replica", "ready"), ("sub1", "primary", "ready"),
        ("sub2", "primary", "ready"),
    ]  # fmt: skip
    assert all(device["memory_available"] > 0 for device in found["devices"])


@pytest.mark.parametrize("flag", [False, True])
def test_predict_gives_torchs_answer(
    cli: Callable[..., Answer], cluster: Served, picture: Path, flag: bool
) -> None:
    """With the coordinator of a launch, and with one that is named."""
    where = ["--coordinator", cluster.coordinator.address] if flag else []
    words = ["cluster", "predict", cluster.plan.path, picture, "--json", "--top", 3, *where]
    answer = cli(*words)
    assert (answer.code, answer.err) == (0, "")
    found = answer.json()
    (one,) = found["predictions"]
    share = expected(cluster, picture)
    order = np.argsort(-share)[:3]
    assert [guess["label"] for guess in one["top"]] == [LABELS[i] for i in order]
    np.testing.assert_allclose([g["probability"] for g in one["top"]], share[order], rtol=1e-3)
    assert one["answered"] == ["sub0", "sub1", "sub2"]
    assert (one["degraded"], one["missing"], one["blind_classes"]) == (False, {}, [])
    times = one["timings_ms"]
    total = times.pop("total")
    assert list(times) == [
        "client", "decode", "queue", "network", "worker_queue", "compute", "wait", "fuse",
    ]  # fmt: skip
    assert 0 < sum(times.values()) <= total * 1.001


def test_predict_for_a_person(cli: Callable[..., Answer], cluster: Served, picture: Path) -> None:
    other = photo(picture.with_name("other.png"), seed=1)
    where = ["--coordinator", cluster.coordinator.address]
    answer = cli("cluster", "predict", cluster.plan.path, picture, other, *where)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.index("noise.png") < answer.out.index("other.png")
    assert answer.out.count(" % ") == 10
    assert answer.out.count("3 of 3 sub-models answered (sub0, sub1, sub2), ") == 2
    assert "network " in answer.out and "softmax of the logits" in answer.out
    last = answer.out.strip().splitlines()[-1]
    assert last == (
        f"Next: edgevit cluster bench {cluster.plan.path} {' '.join(where)} -o report.html"
    )


def test_bench_writes_a_report(
    cli: Callable[..., Answer], home: Path, cluster: Served, picture: Path
) -> None:
    words = ["--requests", 40, "--in-flight", 2, "--photo", picture, "-o", "r.html"]
    answer = cli("cluster", "bench", cluster.plan.path, *words)
    assert (answer.code, answer.err) == (0, "")
    assert "The straggler is " in answer.out and "end to end" in answer.out
    assert "Report: r.html (numbers: r.json, r.csv)" in answer.out
    run = ClusterRun.model_validate_json((home / "r.json").read_text())
    assert len(run.samples) == 40 and run.in_flight == 2
    assert len(list(csv.reader((home / "r.csv").open()))) == 41
    page = (home / "r.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "Where the time goes" in page
    assert sorted(p.name for p in home.iterdir() if p.name.startswith((".r", "r"))) == [
        "r.csv", "r.html", "r.json",
    ]  # fmt: skip


def test_bench_as_json(cli: Callable[..., Answer], cluster: Served) -> None:
    found = cli("cluster", "bench", cluster.plan.path, "--requests", 5, "--json").json()
    assert found.pop("report") == ""
    assert len(ClusterRun.model_validate(found).samples) == 5


def test_a_killed_agent(cli: Callable[..., Answer], tmp_path: Path, picture: Path) -> None:
    with served(write_plan(tmp_path / "plan"), tmp_path) as cluster:
        cluster.agents[1].kill()
        until_degraded(cluster, "sub1")
        plan = cluster.plan.path
        status = cli("cluster", "status", plan)
        assert status.code == 1 and ": degraded" in status.out
        assert "without sub1; blind to bee, eel" in status.out
        assert "unreachable" in status.out and "nothing listens at" in status.out
        assert f"Next: edgevit cluster launch {plan}" in status.out
        person = cli("cluster", "predict", plan, picture)
        assert person.code == 0
        assert person.err.startswith(f"warning: {picture}: degraded, without sub1 (")
        assert person.err.rstrip().endswith("; blind to bee, eel")
        assert "2 of 3 sub-models answered (sub0, sub2)" in person.out
        machine = cli("cluster", "predict", plan, picture, "--json", "--top", len(LABELS))
        (one,) = machine.json()["predictions"]
        assert one["degraded"] and list(one["missing"]) == ["sub1"]
        assert one["blind_classes"] == ["bee", "eel"]
        share = expected(cluster, picture, lost=(1,))
        got = {guess["index"]: guess["probability"] for guess in one["top"]}
        np.testing.assert_allclose([got[i] for i in range(len(LABELS))], share, rtol=1e-3)
        bench = cli("cluster", "bench", plan, "--requests", 10)
        assert bench.code == 0
        assert "10 of 10 answers were degraded, without sub1" in bench.err
        assert "Every answer was degraded" in bench.out
        for agent in cluster.agents:
            agent.kill()
        until_degraded(cluster, "sub0", "sub1", "sub2")
        none = cli("cluster", "predict", plan, picture)
        assert none.code == 1 and "no sub-model of 'tiny-vit' can answer now" in none.err
        down = cli("cluster", "status", plan)
        assert down.code == 1 and "no sub-model can answer now" in down.out


@pytest.mark.parametrize("verb", [["predict", "PLAN", "PHOTO"], ["bench", "PLAN"]])
def test_a_coordinator_that_is_down(
    cli: Callable[..., Answer], cluster: Served, picture: Path, tmp_path: Path, verb: list[str]
) -> None:
    """One that has gone, one that never was, one that is named and of another plan."""
    addresses = addresses_of(cluster.agents)
    other = write_plan(tmp_path / "other", seed=4).path

    def error(plan: Path, *more: object) -> str:
        places = {"PLAN": plan, "PHOTO": picture}
        answer = cli("cluster", *[places.get(word, word) for word in verb], *more, "--json")
        assert answer.code == 1 and answer.err.count("error: ") == 1
        assert answer.json()["exit_code"] == 1
        return answer.err

    with coordinating(cluster.plan, addresses) as gone:
        pass
    down = error(cluster.plan.path, "--coordinator", gone.address)
    assert "does not answer" in down and f"edgevit cluster launch {cluster.plan.path}" in down
    never = error(other)
    assert f"edgevit cluster launch {other}" in never and "--coordinator" in never
    wrong = error(other, "--coordinator", cluster.coordinator.address)
    assert "serves the plan" in wrong and cluster.plan.digest[:12] in wrong


def test_local_input(cli: Callable[..., Answer], tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", layouts=("NCHW",) * 3)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    x = pictures(1)
    np.save(inputs / "door.npy", x.transpose(0, 3, 1, 2))
    with (
        agents_of(plan, tmp_path, inputs=[inputs] * 3) as agents,
        coordinating(plan, addresses_of(agents)) as coordinator,
    ):
        remember(plan, addresses_of(agents), coordinator)
        answer = cli("cluster", "predict", plan.path, "--input-ref", "door", "--json", "--top", 1)
        (one,) = answer.json()["predictions"]
        assert one["mode"] == "local-input" and one["picture"] == "door"
        assert one["top"][0]["index"] == plan.reference(x)[0].argmax()
        assert one["input_age_ms"] > 0 and one["input_spread_ms"] >= 0
        person = cli("cluster", "predict", plan.path, "--input-ref", "door")
        assert "its oldest input was " in person.out
        absent = cli("cluster", "predict", plan.path, "--input-ref", "gate")
        assert absent.code == 1 and "gate" in absent.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["predict", "PLAN"], "either picture files or --input-ref"),
        (["predict", "PLAN", "PHOTO", "--input-ref", "x"], "either picture files or --input-ref"),
        (["predict", "PLAN", "gone.jpg"], "expected a picture: gone.jpg does not exist"),
        (["predict", "gone", "PHOTO"], "expected a plan"),
        (["status", "PHOTO"], "is a file"),
        (["status", "PLAN", "--coordinator", "nonsense"], "HOST:PORT, got 'nonsense'"),
        (["bench", "PLAN", "--photo", "PHOTO", "--input-ref", "x"], "give one"),
        (["bench", "PLAN", "--requests", "0"], "--requests"),
        (["bench", "PLAN", "-o", "report.txt"], "ending in .html"),
        (["bench", "PLAN", "-o", "none/report.html"], "does not exist"),
    ],
)
def test_mistakes(
    cli: Callable[..., Answer], cluster: Served, picture: Path, words: list[str], part: str
) -> None:
    places = {"PLAN": cluster.plan.path, "PHOTO": picture}
    answer = cli("cluster", *[places.get(word, word) for word in words], "--json")
    assert answer.code == 2 and part in answer.err and answer.err.count("error: ") == 1
    assert answer.json()["exit_code"] == 2


def test_a_state_that_cannot_be_read(cli: Callable[..., Answer], tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    remember(plan, {"pi-0": "127.0.0.1:1"}, None)
    (folder_of(plan.path) / "state.json").write_text("{")
    answer = cli("cluster", "status", plan.path)
    assert answer.code == 2 and "state.json cannot be read" in answer.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_writes_nothing(
    cluster: Served, tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of its requests: the workers of the coordinator have had many by then."""
    words = ["cluster", "bench", cluster.plan.path, "--requests", 100_000, "-o", "r.html"]
    before = seen_by(cluster)
    process = start(*words, cwd=tmp_path)
    try:
        eventually(lambda: process.poll() is not None or seen_by(cluster) > before + 60, 60)
        assert process.poll() is None
        process.send_signal(number)
        answer = finish(process, timeout=30)
    finally:
        process.kill()
    assert answer.code == (130 if number is signal.SIGINT else 128 + number)
    assert answer.out == "" and list(tmp_path.iterdir()) == []
    if number is signal.SIGINT:
        assert answer.err == "error: interrupted; nothing half-written was left behind\n"


def test_a_laptop_without_torch(cluster: Served, tmp_path: Path, picture: Path) -> None:
    env = hide(tmp_path / "site", *CONVERTERS, "onnxruntime")
    plan = cluster.plan.path
    assert edgevit("cluster", "status", plan, cwd=tmp_path, env=env).code == 0
    answer = edgevit("cluster", "predict", plan, picture, "--json", cwd=tmp_path, env=env)
    assert answer.code == 0 and answer.json()["predictions"][0]["top"]
    words = ["--requests", 5, "-o", "r.html"]
    assert edgevit("cluster", "bench", plan, *words, cwd=tmp_path, env=env).code == 0
    assert json.loads((tmp_path / "r.json").read_text())["requests"] == 5


def test_help_of_the_verbs(cli: Callable[..., Answer]) -> None:
    for verb in ("status", "predict", "bench"):
        answer = cli("cluster", verb, "--help")
        assert answer.code == 0 and f"edgevit cluster {verb} [OPTIONS]" in answer.out
        assert "--coordinator" in answer.out and "--json" in answer.out

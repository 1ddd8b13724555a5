"""`edgevit cluster launch` and `stop` as a person runs them, with real agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_tools import certificates
from cli_tools import Answer
from cluster_launch_tools import free_port, marked, running, stopped_at_the_end
from coordinator_tools import DEVICES, MODEL, TinyPlan, write_plan

from edgevit.cli.cluster import ORDER
from partition.cluster.state import folder_of, locked, state_file
from runtime.client import Access, AgentClient

Cli = Callable[..., Answer]


@pytest.fixture
def plan(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyPlan]:
    monkeypatch.setenv("COLUMNS", "160")
    with marked(str(home)):
        found = write_plan(home / "plan")
        with stopped_at_the_end(found.path):
            yield found


def last_line(answer: Answer) -> str:
    return answer.out.rstrip().splitlines()[-1]


def test_launch_again_and_stop(plan: TinyPlan, cli: Cli, home: Path) -> None:
    first = cli("cluster", "launch", "plan", "--listen", "127.0.0.1:0")
    assert (first.code, first.err) == (0, "")
    for name in DEVICES[:3]:
        (row,) = (line for line in first.out.splitlines() if line.strip().startswith(name))
        assert "agent started, 1 uploaded, 1 loaded" in row and "127.0.0.1:" in row
    assert last_line(first) == "Next: edgevit cluster predict plan PHOTO"

    second = cli("cluster", "launch", "plan", "--listen", "127.0.0.1:0")
    assert (second.code, second.err) == (0, "")
    assert "Nothing to do: all of it was there." in second.out and "(as it was)" in second.out

    third = cli("cluster", "launch", "plan", "--listen", "127.0.0.1:0", "--json").json()
    assert third["changed"] is False and third["digest"] == plan.digest
    assert third["coordinator"]["address"] in first.out and third["problems"] == []
    assert [device["submodels"] for device in third["devices"]] == [["sub0"], ["sub1"], ["sub2"]]
    assert third["next"] == ["edgevit", "cluster", "predict", "plan", "PHOTO"]

    stopped = cli("cluster", "stop", "plan")
    assert (stopped.code, stopped.err) == (0, "")
    assert stopped.out.count("ended") == 4
    assert last_line(stopped) == "Next: edgevit cluster launch plan"
    again = cli("cluster", "stop", "plan")
    assert again.code == 0 and "Nothing of plan runs." in again.out
    empty = cli("cluster", "stop", "plan", "--json").json()
    assert (empty["coordinator"], empty["devices"], empty["problems"]) == (False, [], [])


def test_a_device_that_is_down_is_exit_code_1(plan: TinyPlan, cli: Cli) -> None:
    address = f"127.0.0.1:{free_port()}"
    file = plan.path / "cluster.yaml"
    where = f'{{name: pi-1, address: "{address}",'
    file.write_text(file.read_text().replace("{name: pi-1,", where))
    words = ("cluster", "launch", "plan", "--listen", "127.0.0.1:0")
    answer = cli(*words)
    assert (answer.code, answer.err) == (1, "")
    assert f"✗ pi-1: nothing listens at {address}; start `edgevit agent" in answer.out
    assert "Coordinator at 127.0.0.1:" in answer.out
    assert last_line(answer) == "Next: edgevit cluster status plan"
    answer = cli(*words, "--json")
    assert answer.code == 1
    value = answer.json()
    (problem,) = value["problems"]
    assert problem.startswith("pi-1: ") and value["changed"] is False
    assert cli("cluster", "stop", "plan").code == 0


def test_the_options_of_the_coordinator(plan: TinyPlan, cli: Cli, home: Path) -> None:
    pems = certificates(home / "pems")
    (home / "token").write_text("a-word-that-nobody-guesses")
    words = (
        "cluster", "launch", "plan", "--listen", "127.0.0.1:0", "--token-file", "token",
        "--metrics", "127.0.0.1:0", "--worker-timeout", "2", *pems.flags(),
    )  # fmt: skip
    answer = cli(*words)
    assert answer.code == 0 and "metrics at 127.0.0.1:" in answer.out
    assert last_line(answer).endswith("PHOTO --tls-ca CA --tls-cert CERT --tls-key KEY")
    address = cli(*words, "--json").json()["coordinator"]["address"]
    cert, key = pems.client
    access = Access(
        address, tls_ca=pems.ca, tls_cert=cert, tls_key=key, token="a-word-that-nobody-guesses"
    )
    with AgentClient(access) as client:
        workers = json.loads(client.model_metadata(MODEL).properties["workers"])
    assert [worker["usable"] for worker in workers.values()] == [True] * 3


def test_wrong_input_is_exit_code_2(plan: TinyPlan, cli: Cli, home: Path) -> None:
    for words, said in (
        (("launch", "none"), "expected a plan"),
        (("stop", "none"), "expected a plan"),
        (("launch", "plan", "--listen", "0.0.0.0:0"), "--insecure"),
        (("launch", "plan", "--listen", "here"), "expected HOST:PORT"),
        (("launch", "plan", "--tls-cert", "none"), "--tls-key"),
        (("launch", "plan", "--token-file", "none"), "none"),
        (("launch", "plan", "--worker-timeout", "nan"), "--worker-timeout"),
        (("lunch", "plan"), "launch"),
    ):
        answer = cli("cluster", *words)
        assert answer.code == 2 and answer.err.startswith("error: ") and said in answer.err
    with locked(plan.path):
        answer = cli("cluster", "launch", "plan", "--json")
        assert answer.code == 2 and "wait for it" in answer.json()["error"]
    state_file(plan.path).write_text("{")
    for verb in ("launch", "stop"):
        answer = cli("cluster", verb, "plan")
        assert answer.code == 2 and "pgrep -af" in answer.err
    state_file(plan.path).unlink()
    assert not running(str(home))


def test_other_bytes_are_exit_code_1(plan: TinyPlan, cli: Cli, home: Path) -> None:
    manifest = plan.bundle(2) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": "2027"}))
    answer = cli("cluster", "launch", "plan")
    assert answer.code == 1 and "sub2 is not what the plan was made with" in answer.err
    assert not folder_of(plan.path).exists() and not running(str(home))


def test_help(cli: Cli) -> None:
    answer = cli("cluster", "--help")
    places = [answer.out.index(f" {verb} ") for verb in ORDER]
    assert answer.code == 0 and places == sorted(places)
    for verb in ORDER:
        assert cli("cluster", verb, "--help").code == 0

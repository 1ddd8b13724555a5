"""`edgevit devices` against real agents, and servers that are less."""

from __future__ import annotations

import json
import os
import socket
import time

import grpc
import pytest
from agent_tools import certificates, running_agent
from cli_tools import edgevit
from small_agent import Doubles, serving, small_services

from runtime.wire.descriptors import INFERENCE
from runtime.wire.refused import Refused


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch, home):
    monkeypatch.delenv("EDGEVIT_DEVICES", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def words_of(text: str) -> str:
    return " ".join(text.split())


def test_a_real_agent_and_one_that_is_gone(cli, home, tmp_path):
    gone = f"127.0.0.1:{free_port()}"
    with running_agent(tmp_path / "store", "--name", "bench") as agent:
        (home / "devices.yaml").write_text(
            f"- {{name: pi, address: '{agent.address}'}}\n- {{name: gone, address: '{gone}'}}\n"
        )
        answer = cli("devices")
        assert answer.code == 1 and answer.err == ""
        assert "unreachable" in answer.out and "nothing listens there" in words_of(answer.out)
        assert f"gone: nothing listens at {gone}; start `edgevit agent" in answer.out
        assert "Next: edgevit profile OUT --device pi\n" in answer.out
        answer = cli("devices", "pi", "--json")
        assert answer.code == 0 and answer.err == ""
        answer = cli("devices", agent.address)
        assert answer.code == 0 and "unreachable" not in answer.out
        for word in ("ready", agent.address, "onnxruntime", "start 1", "GB"):
            assert word in answer.out
        (found,) = cli("devices", "pi", "--json").json()["devices"]
    assert (found["name"], found["address"], found["state"]) == ("pi", agent.address, "ready")
    assert (found["own_name"], found["generation"], found["models"]) == ("bench", 1, [])
    assert {e["name"] for e in found["engines"]} >= {"litert", "onnxruntime"}
    assert found["environment"]["cores_logical"] == os.cpu_count()
    assert found["memory_total"] > found["memory_available"] > 0 and found["disk_free"] > 0
    assert abs(found["clock_difference_s"]) <= found["round_trip_s"], "it is the same clock"


def test_json_of_devices_that_do_not_answer(cli, home):
    gone = f"127.0.0.1:{free_port()}"
    (home / "lab.yaml").write_text(
        f"- {{name: a, address: '{gone}'}}\n- {{name: b, address: '{gone}', token_file: none}}\n"
    )
    answer = cli("devices", "--devices", "lab.yaml", "--json")
    assert answer.code == 1 and answer.err == ""
    a, b = answer.json()["devices"]
    assert (a["name"], a["state"], b["state"]) == ("a", "unreachable", "unreachable")
    assert a["reason"].startswith("nothing listens at ") and "engines" not in a
    assert "cannot read the token file" in b["reason"]


def test_all_are_asked_at_the_same_time(cli, home):
    """Ports that take connections and say nothing cost the deadline once, not once each."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(8)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    started = time.monotonic()
    answer = cli("devices", *addresses, "--json")
    taken = time.monotonic() - started
    for server in servers:
        server.close()
    found = answer.json()["devices"]
    assert answer.code == 1 and [d["address"] for d in found] == addresses
    assert all("gave no answer to ServerReady within 3 s" in d["reason"] for d in found)
    assert taken < 8 * 3, "one after another they take 24 s"


def test_states(cli, tmp_path):
    """An agent that ends (live), a server of the protocol that is no agent, one with a token."""
    ending, locked = small_services(tmp_path), small_services(tmp_path)
    ending[INFERENCE].ready = False

    async def refuse(request, context):
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no")

    locked[INFERENCE].ServerReady = refuse
    with (
        serving(ending) as one,
        serving({INFERENCE: Doubles()}) as two,
        serving(locked) as three,
    ):
        answer = cli("devices", one, two, three, "--json")
        table = cli("devices", one, two, three)
    live, other, closed = answer.json()["devices"]
    assert answer.code == 1
    assert live["state"] == "live" and live["clock_difference_s"] < -1e9
    assert other["state"] == "ready" and "has no call Describe" in other["reason"]
    assert closed["state"] == "unreachable" and "wants a token" in closed["reason"]
    assert "it has no such call" in words_of(table.out) and "wants the right token" in words_of(
        table.out
    )


def test_mutual_tls_from_the_file_and_from_options(cli, home, tmp_path):
    pems = certificates(tmp_path / "pems")
    (home / "lab").mkdir()
    for file in pems.folder.iterdir():
        (home / "lab" / file.name).write_bytes(file.read_bytes())
    with running_agent(tmp_path / "store", *pems.flags()) as agent:
        (home / "lab" / "devices.yaml").write_text(
            f"- name: pi\n  address: {agent.address}\n"
            "  tls: {ca: ca.pem, cert: client.pem, key: client.key}\n"
        )
        assert cli("devices", "--devices", "lab/devices.yaml").code == 0
        tls = ["--tls-ca", pems.ca, "--tls-cert", pems.client[0], "--tls-key", pems.client[1]]
        assert cli("devices", agent.address, *tls).code == 0
        # In a process of its own: what gRPC writes on stderr by itself is seen there.
        answer = edgevit("devices", agent.address, "--tls-ca", pems.ca, "--json", cwd=home)
    assert answer.code == 1 and answer.err == ""
    assert "may ask for a client certificate" in answer.json()["devices"][0]["reason"]


def test_a_token(cli, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-long-secret-word")
    token.chmod(0o600)
    with running_agent(tmp_path / "store", "--token-file", token) as agent:
        assert cli("devices", agent.address, "--token-file", token).code == 0
        answer = cli("devices", agent.address)
        assert answer.code == 1 and "wants a token; give its file (--token-file)" in answer.out
        assert "a-long-secret-word" not in agent.stderr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no devices.yaml here or in ~/.config/edgevit"),
        (["pi"], "no device is called 'pi': there is no devices.yaml"),
        (["--devices", "gone.yaml"], "--devices names gone.yaml, which is no file"),
        (["pi:1:2"], "expected the address of an agent as HOST:PORT, got 'pi:1:2'"),
        (["pi:1", "--tls-cert", "a.pem"], "a client certificate needs its key too"),
    ],
)
def test_wrong_words(cli, words, message):
    answer = cli("devices", *words)
    assert answer.code == 2 and answer.out == "" and message in answer.err
    assert message in json.loads(cli("devices", *words, "--json").out)["error"]

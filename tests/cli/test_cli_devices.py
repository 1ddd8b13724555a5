"""`edgevit devices` against real agents, and servers that are less."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from contextlib import ExitStack

import grpc
import pytest
from agent_tools import certificates, running_agent
from cli_tools import edgevit
from small_agent import Doubles, serving, small_services

from edgevit.cli import devices
from runtime.wire.descriptors import DEVICE, INFERENCE, message
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


def test_all_are_asked_at_the_same_time(cli, tmp_path, monkeypatch):
    """None of them answers before all are asked."""
    monkeypatch.setattr(devices, "DEADLINE_S", 60.0)
    all_here = threading.Barrier(8)

    async def meet(request, context):
        await asyncio.to_thread(all_here.wait, 20)
        return message("inference.ServerReadyResponse")(ready=True)

    with ExitStack() as stack:
        addresses = []
        for _ in range(8):
            services = small_services(tmp_path)
            services[INFERENCE].ServerReady = meet
            addresses.append(stack.enter_context(serving(services)))
        answer = cli("devices", *addresses, "--json")
    found = answer.json()["devices"]
    assert answer.code == 0 and [d["address"] for d in found] == addresses
    assert {d["state"] for d in found} == {"ready"}


def test_one_that_takes_connections_and_says_nothing(cli):
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = cli("devices", f"127.0.0.1:{server.getsockname()[1]}", "--json")
    (found,) = answer.json()["devices"]
    assert answer.code == 1 and found["state"] == "unreachable"
    assert "gave no answer to ServerReady within 3 s" in found["reason"]


def test_states(cli, tmp_path):
    """One that ends, a server that is no agent, one with a token, a newer one, a slow one."""
    ending, locked, newer, slow = (small_services(tmp_path) for _ in range(4))
    describe = newer[DEVICE].Describe

    async def with_more(request, context):
        answer = await describe(request, context)
        answer.environment_json = '{"a_new_field": 1, ' + answer.environment_json[1:]
        return answer

    async def late(request, context):
        await asyncio.sleep(30)

    newer[DEVICE].Describe, slow[DEVICE].Describe = with_more, late
    ending[INFERENCE].ready = False

    async def refuse(request, context):
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no")

    locked[INFERENCE].ServerReady = refuse
    with (
        serving(ending) as one,
        serving({INFERENCE: Doubles()}) as two,
        serving(locked) as three,
        serving(newer) as four,
        serving(slow) as five,
    ):
        answer = cli("devices", one, two, three, four, five, "--json")
        table = cli("devices", one, two, three, four)
    live, other, closed, unread, busy = answer.json()["devices"]
    assert answer.code == 1
    assert live["state"] == "live" and live["clock_difference_s"] < -1e9
    assert other["state"] == "ready" and "has no call Describe" in other["reason"]
    assert closed["state"] == "unreachable" and "wants a token" in closed["reason"]
    assert unread["state"] == "ready" and "a_new_field" in unread["reason"]
    assert "runs edgevit 1.2.3" in unread["reason"] and "cannot be read" in words_of(table.out)
    assert busy["state"] == "ready" and "gave no answer to Describe" in busy["reason"]
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
        answer = cli("devices", "--devices", "lab/devices.yaml")
        assert answer.code == 0 and "--device pi --devices lab/devices.yaml\n" in answer.out
        tls = ["--tls-ca", pems.ca, "--tls-cert", pems.client[0], "--tls-key", pems.client[1]]
        answer = cli("devices", agent.address, *tls)
        assert answer.code == 0 and " ".join(["--device", agent.address, *map(str, tls)]) in (
            answer.out
        ), "the next command reaches it too"
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

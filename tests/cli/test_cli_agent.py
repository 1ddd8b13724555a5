"""edgevit agent as a person starts it: flags, what it says, what it does without other packages."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_tools import Agent, ask, channel_to, engines_of, eventually, running_agent
from cli_tools import edgevit, hide, start

from edgevit.cli.agent import bytes_of, default_store
from runtime.wire.descriptors import DEVICE, HEALTH

HERE = ("agent", "--listen", "127.0.0.1:0", "--store", "store")
# All that other verbs need, and the engines: with nothing loaded none of it is imported.
NOT_NEEDED = (
    "torch", "PIL", "altair", "jinja2", "vl_convert", "rich", "yaml", "prometheus_client",
    "ai_edge_litert", "tflite_runtime", "onnxruntime", "executorch", "coremltools", "timm",
    "sklearn", "onnx",
)  # fmt: skip
LIMIT_S = 60


@contextmanager
def started(*words: object, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Any]:
    """The process, and its first line on stdout; no process is left at the end."""
    process = start(*words, cwd=cwd, env=env)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process: Any) -> str:
    """SIGTERM; what it said on stderr."""
    process.terminate()
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and "Traceback" not in err, err
    return str(err)


def test_one_line_when_it_is_ready_and_json_on_stderr(tmp_path):
    with started(*HERE, cwd=tmp_path) as process:
        line = process.stdout.readline()
        address = line.removeprefix("listening on ").strip()
        assert line == f"listening on {address}\n" and not address.endswith(":0")
        with channel_to(address) as channel:
            assert ask(channel, "ServerReady").ready
        events = [json.loads(line)["event"] for line in end(process).splitlines()]
        assert events == ["listening", "ready", "draining", "ended"]


def test_json_tells_what_a_script_needs(tmp_path, bundle):
    words = ["--json", "--name", "a board", "--metrics", "127.0.0.1:0", "--log-level", "error"]
    with started(*HERE, *words, "--load", bundle, cwd=tmp_path) as process:
        told = json.loads(_object(process.stdout))
        assert set(told) == {"address", "metrics", "name", "device_id", "store", "models", "pid"}
        assert told["name"] == "a board" and told["pid"] == process.pid
        assert Path(told["store"]) == tmp_path / "store"
        (model,) = told["models"]
        assert model["name"] == "tinynet-net" and model["target"] == "tflite"
        with channel_to(told["address"]) as channel:
            assert ask(channel, "Describe", of=DEVICE).name == "a board"
        assert end(process) == ""  # at level error there is nothing to say


def _object(stream: Any) -> str:
    """The lines of one indented JSON object."""
    text = ""
    for line in stream:
        text += line
        if line == "}\n":
            return text
    raise AssertionError(f"no object: {text}")


def test_it_starts_without_any_package_that_it_does_not_use(tmp_path):
    env = hide(tmp_path / "site", *NOT_NEEDED)
    with started(*HERE, cwd=tmp_path, env=env) as process:
        assert process.stdout.readline().startswith("listening on ")
        end(process)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--listen", "8001"], ["HOST:PORT", "'8001'"]),
        (["--listen", "0.0.0.0:0"], ["--listen 0.0.0.0:0", "--insecure", "--token-file"]),
        (["--metrics", "0.0.0.0:0"], ["--metrics 0.0.0.0:0", "--insecure"]),
        (["--metrics", "unix:/tmp/x"], ["--metrics", "HOST:PORT"]),
        (["--load", "nobody"], ["--load nobody", "no such folder"]),
        (["--threads", "0"], ["--threads"]),
        (["--queue", "0"], ["--queue"]),
        (["--grace", "-1"], ["--grace"]),
        (["--quota", "much"], ["--quota", "500M or 4G"]),
        (["--log-level", "loud"], ["debug, info, warning, error", "'loud'"]),
        (["--tls-cert", "c.pem"], ["--tls-cert needs --tls-key"]),
        (["--tls-client-ca", "ca.pem"], ["--tls-client-ca needs"]),
        (["--token-file", "gone"], ["--token-file gone", "No such file"]),
        (["--store", "file"], ["store", "file"]),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_clear_error(tmp_path, words, parts):
    (tmp_path / "file").write_text("mine")
    answer = edgevit(*HERE, *words, cwd=tmp_path, timeout=LIMIT_S)
    said = [line for line in answer.err.splitlines() if not line.startswith("{")]
    assert answer.code == 2 and answer.out == "" and len(said) == 1
    assert said[0].startswith("error: ")
    for part in parts:
        assert part in answer.err


def test_an_error_as_json(tmp_path):
    answer = edgevit(*HERE, "--load", "nobody", "--json", cwd=tmp_path, timeout=LIMIT_S)
    assert answer.code == 2 and answer.json()["exit_code"] == 2


def test_the_token_file_may_come_from_the_environment(tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    token.chmod(0o600)
    env = {"EDGEVIT_TOKEN_FILE": str(token), "XDG_DATA_HOME": str(tmp_path / "data")}
    with started("agent", "--listen", "0.0.0.0:0", "--insecure", cwd=tmp_path, env=env) as process:
        port = process.stdout.readline().strip().rpartition(":")[2]
        with channel_to(f"127.0.0.1:{port}") as channel:
            assert ask(channel, "Check", of=HEALTH).status == 1
            with pytest.raises(Exception, match="expected the agent's token"):
                ask(channel, "ServerLive")
        err = end(process)
        assert "a-token-of-some-length" not in err and "travels unencrypted" in err
    assert (tmp_path / "data" / "edgevit" / "agent" / "device.json").exists()


def test_sizes():
    assert [bytes_of(text) for text in ("0", "1500", "2K", "3m", "4G", "4GiB", "1TB")] == [
        0, 1500, 2 << 10, 3 << 20, 4 << 30, 4 << 30, 1 << 40,
    ]  # fmt: skip


@pytest.mark.parametrize("data", ["", "relative/is/no/base"])
def test_the_store_is_where_the_user_keeps_data(monkeypatch, tmp_path, data):
    monkeypatch.setenv("XDG_DATA_HOME", data)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store() == tmp_path / ".local" / "share" / "edgevit" / "agent"


def test_a_quota_is_kept(tmp_path, bundle):
    answer = edgevit(*HERE, "--quota", "1K", "--load", bundle, cwd=tmp_path, timeout=LIMIT_S)
    assert answer.code == 2 and "1024" in answer.err


def test_a_name_in_the_store_is_enough(tmp_path, bundle):
    """The second start needs no folder; and what was loaded is not loaded twice."""

    def loaded(agent: Agent) -> dict[str, int]:
        with channel_to(agent.address) as channel:
            models = ask(channel, "Describe", of=DEVICE).models
            return {model.name: len(agent.engines()) for model in models if model.state == "READY"}

    with running_agent(tmp_path / "store", load=[bundle]) as agent:
        assert loaded(agent) == {"tinynet-net": 1}
    with running_agent(tmp_path / "store", load=["tinynet-net", "tinynet-net/onnx"]) as agent:
        assert loaded(agent) == {"tinynet-net": 2, "tinynet-net/onnx": 2}


def test_a_reader_that_has_gone_is_no_reason_to_end(tmp_path):
    process = start(*HERE, cwd=tmp_path)
    try:
        process.stdout.close()
        deadline = time.monotonic() + LIMIT_S
        while not (tmp_path / "store" / "device.json").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        for line in process.stderr:
            if json.loads(line)["event"] == "ready":
                break
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_ctrl_c_in_a_terminal_reaches_all_and_ends_in_peace(tmp_path, bundle):
    """The terminal signals the engines too; the agent drains all the same."""
    process = start(*HERE, "--load", bundle, cwd=tmp_path, start_new_session=True)
    try:
        assert process.stdout.readline().startswith("listening on ")
        engines = engines_of(process.pid)
        assert engines
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0 and "Traceback" not in err
        assert [json.loads(line)["event"] for line in err.splitlines()][-2:] == [
            "draining", "ended",
        ]  # fmt: skip
        assert not psutil.wait_procs(engines, LIMIT_S)[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_sigterm_while_a_model_loads(tmp_path, bundle):
    process = start(*HERE, "--load", bundle, "--grace", "5", cwd=tmp_path)
    try:
        eventually(lambda: engines_of(process.pid), LIMIT_S)
        engines = engines_of(process.pid)
        for engine in engines:
            engine.suspend()
        process.terminate()
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0 and out == "" and "Traceback" not in err
        assert not psutil.wait_procs(engines, LIMIT_S)[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_help_names_the_flags(tmp_path):
    answer = edgevit("agent", "--help", cwd=tmp_path, env={"COLUMNS": "160"}, timeout=LIMIT_S)
    for flag in (
        "--listen", "--store", "--load", "--name", "--threads", "--instances", "--queue",
        "--no-isolate", "--tls-cert", "--tls-key", "--tls-client-ca", "--token-file",
        "--insecure", "--metrics", "--quota", "--grace", "--log-level", "--json",
    ):  # fmt: skip
        assert flag in answer.out

"""`edgevit profile --device` on real agents. No claims about times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_tools import Agent, eventually, running_agent
from cli_tools import finish, screen_of, start

from edgevit.cli.profile_progress import watching
from edgevit.cli.report import report_files, write_report
from runtime.client import AgentClient, AgentFault
from runtime.digest import sha256_tree
from runtime.environment import describe
from runtime.run_files import load_run
from runtime.run_record import RunRecord

RUNS = ["--runs", 20]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent") / "store", "--name", "bench") as running:
        yield running


@pytest.fixture
def named(home: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Path:
    """devices.yaml with the agent as pi, and a device that is not there."""
    monkeypatch.delenv("EDGEVIT_DEVICES", raising=False)
    path = home / "devices.yaml"
    path.write_text(
        f"- {{name: pi, address: '{agent.address}'}}\n- {{name: gone, address: '127.0.0.1:1'}}\n"
    )
    return path


@pytest.fixture
def onnx_bundle(bundle: Path) -> Path:
    """The tiny bundle with the two artefacts that load quickly."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artifacts"] = {t: manifest["artifacts"][t] for t in ("onnx", "tflite")}
    path.write_text(json.dumps(manifest))
    for name in ("model.mlpackage", "model.pte"):
        shutil.rmtree(bundle / name) if (bundle / name).is_dir() else (bundle / name).unlink()
    return bundle


def test_several_devices_in_one_report(cli, home, named, onnx_bundle, agent):
    words = ["--device", "pi", "--device", "local", "--device", "gone", "-o", "page.html", *RUNS]
    answer = cli("profile", onnx_bundle, *words)
    assert answer.code == 1 and answer.err == "", "one device is not there; the others' runs are"
    told = " ".join(answer.out.split())
    assert "gone was not profiled: nothing listens at 127.0.0.1:1" in told
    assert f"{onnx_bundle} was pushed to pi and stays there: " in told
    assert sha256_tree(onnx_bundle)[:12] in told
    assert "page-pi.json, page-pi.csv, page-local.json, page-local.csv" in told
    pi, local = load_run(home / "page-pi.json"), load_run(home / "page-local.json")
    assert (pi.environment.name, local.environment.name) == ("pi", "local")
    for record in (pi, local):
        assert [m.target for m in record.measurements] == ["onnx", "tflite"]
        assert all(m.latency.n >= 20 for m in record.measurements)
    page = (home / "page.html").read_text()
    assert "tinynet:net onnx fp32 · pi" in page and "tinynet:net onnx fp32 · local" in page
    assert "gone was not profiled" in page

    with AgentClient(agent.address) as client:
        assert client.upload_status(sha256_tree(onnx_bundle)).names == ["tinynet-net"]
    answer = cli("profile", onnx_bundle / "model.onnx", "--device", "pi", "--json", *RUNS)
    assert answer.code == 0 and answer.err == ""
    found = answer.json()
    assert found["pushed"] == [] and found["failed"] == [] and found["report"] == ""
    (record,) = found["runs"]
    assert [m["target"] for m in record["measurements"]] == ["onnx"]
    assert record["environment"]["name"] == "pi"

    both = cli("report", "page-pi.json", "page-local.json", "-o", "both.html")
    assert both.code == 0 and "pi (" in both.out and "local (" in both.out


def test_two_bundles_and_an_address(cli, home, onnx_bundle, agent):
    other = home / "other"
    shutil.copytree(onnx_bundle, other)
    (other / "labels.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    words = ["--device", agent.address, "-o", "page.html", "--json", *RUNS]
    answer = cli("profile", onnx_bundle / "model.onnx", other / "model.onnx", *words)
    assert answer.code == 0 and answer.err == ""
    found = answer.json()
    assert len(found["runs"]) == 2 and found["report"] == "page.html"
    where = agent.address.replace(":", "-")
    assert found["files"] == [f"page-{where}-bundle.json", f"page-{where}-other.json"]
    assert all((home / name).is_file() for name in found["files"])
    page = (home / "page.html").read_text()
    for folder in ("bundle", "other"):
        assert f"tinynet:net onnx fp32 ({folder})" in page
    assert [Path(p["bundle"]).name for p in found["pushed"]] == ["bundle", "other"] or (
        [Path(p["bundle"]).name for p in found["pushed"]] == ["other"]
    ), "the first one may be there from another test"
    assert all(p["size_bytes"] > 1000 and p["device"] == agent.address for p in found["pushed"])


def test_one_device_alone(cli, home, named, onnx_bundle):
    answer = cli("profile", onnx_bundle / "model.onnx", "--device", "pi", "-o", "page.html", *RUNS)
    assert answer.code == 0 and "tinynet:net on pi (" in answer.out
    assert load_run(home / "page.json").environment.name == "pi"


def test_the_next_command_measures_the_same(cli, home, named, onnx_bundle):
    named.rename(home / "lab.yaml")
    words = ["--device", "pi", "--devices", "lab.yaml", "--threads", 2, *RUNS]
    answer = cli("profile", onnx_bundle / "model.onnx", *words)
    assert answer.code == 0
    again = " ".join(map(str, [onnx_bundle / "model.onnx", *words, "-o", "report.html"]))
    assert f"Next: edgevit profile {again}\n" in answer.out


def test_names_of_files_that_fall_together(home):
    files = report_files(Path("page.html"))
    assert files is not None
    records = [_record(device) for device in "abc"]
    saved = write_report(records, files, ["pi-out", "pi-out", "PI-OUT-2"])
    assert [str(each.json) for each in saved] == [
        "page-pi-out.json", "page-pi-out-2.json", "page-PI-OUT-2-2.json",
    ]  # fmt: skip
    assert [load_run(each.json).environment.device for each in saved] == ["a", "b", "c"]


def _record(device: str) -> RunRecord:
    """A run without measurements."""
    return RunRecord(
        edgevit_version="0", created="2026-11-21T00:00:00+00:00", threads=1, runs=1, method={},
        environment=describe().model_copy(update={"device": device}), measurements=[],
    )  # fmt: skip


def test_nothing_but_failures(cli, home, named, onnx_bundle):
    answer = cli("profile", onnx_bundle, "--device", "gone", "-o", "page.html")
    assert answer.code == 1 and not (home / "page.html").exists()
    assert "error: gone was not profiled: nothing listens at 127.0.0.1:1" in answer.err
    answer = cli("profile", onnx_bundle, "--device", "gone", "-o", "page.html", "--json")
    found = answer.json()
    assert answer.code == 1 and found["runs"] == [] and found["report"] == ""
    assert (
        found["failed"][0]["device"] == "gone" and "nothing listens" in found["failed"][0]["reason"]
    )


def test_a_bundle_that_the_device_refuses(cli, home, named, onnx_bundle):
    (onnx_bundle / "model.onnx").write_bytes(b"other bytes")
    answer = cli("profile", onnx_bundle, "--device", "pi", "--json")
    assert answer.code == 1
    assert "model.onnx" in answer.json()["failed"][0]["reason"]


def test_ctrl_c_ends_the_profile_there_too(home, named, onnx_bundle, agent):
    (onnx_bundle / "labels.txt").write_text("\n".join("abcdefghij"))  # no other test pushes it
    process = start(
        "profile", onnx_bundle, "--device", "pi", "--runs", 1_000_000, cwd=home,
        env={"HOME": str(home)},
    )  # fmt: skip
    with AgentClient(agent.address) as client:
        digest = sha256_tree(onnx_bundle)
        eventually(lambda: client.upload_status(digest).complete, 60)
        time.sleep(1)  # past the push, well before the end of a million runs
        process.send_signal(signal.SIGINT)
        answer = finish(process, 30)
        assert answer.code == 130 and "interrupted" in answer.err

        def removed() -> bool:
            try:
                return client.remove(digest) > 0
            except AgentFault as fault:
                assert "is being profiled" in str(fault)
                return False

        eventually(removed, 20)


def test_a_bar_for_each_device(monkeypatch):
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(ours, "rb", buffering=0):
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            with watching() as tell, ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda name: tell(name, "push [/1] of 9 MB", 0.5), ["pi", "jetson"]))
        seen = screen_of(ours)
    assert "pi: push [/1] of 9 MB" in seen and "jetson: push [/1] of 9 MB" in seen
    assert "50%" in seen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.onnx", "--device", "pi"], "net.onnx lies in no bundle, and a device takes bundles"),
        (["gone", "--device", "pi"], "no such bundle or artefact: gone"),
        ([".", "--device", "pi"], "has no manifest.json: it is not a bundle"),
        (["net.onnx", "--device", "pie"], "no device is called 'pie' in devices.yaml"),
        (["net.onnx", "--device", "pi", "-o", "p.pdf"], "-o expects a page name ending in .html"),
        (["net.onnx", "--device", "pi:x"], "HOST:PORT, got 'pi:x'"),
        (["net.onnx", "--token-file", "t"], "--token-file: only with --device"),
    ],
)
def test_wrong_words(cli, home, named, words, message):
    (home / "net.onnx").write_bytes(b"any")
    answer = cli("profile", *words)
    assert answer.code == 2 and answer.out == "" and message in answer.err

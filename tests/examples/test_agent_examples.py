"""The files of examples/agent and the commands of docs/agent.md work with the agent there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_tools import Agent, running_agent
from cli_tools import ROOT, edgevit

from runtime.bundle import read_bundle, read_reference
from runtime.client import Access, AgentClient
from runtime.client.errors import AgentFault
from runtime.devices.file import read_devices

FOLDER = ROOT / "examples" / "agent"
UNIT = FOLDER / "edgevit-agent.service"
CONTAINER = FOLDER / "Containerfile"
DOCS = ROOT / "docs" / "agent.md"


@pytest.fixture(scope="module")
def known_flags(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What `edgevit agent` can be told."""
    answer = edgevit("agent", "--help", cwd=tmp_path_factory.mktemp("help"))
    return set(re.findall(r"--[a-z-]+", answer.out))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("examples") / "store") as agent:
        yield agent


def test_the_unit_has_flags_of_the_agent_and_time_to_drain(known_flags: set[str]) -> None:
    text = UNIT.read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", text, re.M)
    assert command is not None
    used = re.findall(r"--[a-z-]+", command[1])
    assert used and set(used) <= known_flags
    grace = re.search(r"--grace (\d+)", command[1])
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert grace is not None and stop is not None and int(stop[1]) >= int(grace[1]) + 5
    credentials = set(re.findall(r"CREDENTIALS_DIRECTORY}/(\S+)", command[1]))
    assert credentials == set(re.findall(r"^LoadCredential=([^:]+):", text, re.M))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/edgevit/bin/edgevit", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr


def test_the_container_starts_the_agent_and_asks_for_its_health(
    known_flags: set[str], agent: Agent, tmp_path: Path
) -> None:
    text = CONTAINER.read_text(encoding="utf-8")
    entry = text[text.index("ENTRYPOINT") :]
    assert set(re.findall(r'"(--[a-z-]+)"', entry)) <= known_flags
    probe = re.search(r'CMD \["python", "-c", \\\n\s+"(.*)"\]', text)
    assert probe is not None and "127.0.0.1:8001" in probe[1]

    def healthy(address: str) -> bool:
        code = probe[1].replace("127.0.0.1:8001", address)
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    assert healthy(agent.address)
    assert not healthy("127.0.0.1:1")


def test_devices_yaml() -> None:
    devices = read_devices(FOLDER / "devices.yaml")
    assert [device.name for device in devices] == ["pi", "jetson", "here"]
    assert [device.how.secure for device in devices] == [True, True, False]


def test_the_certificates_of_the_docs(tmp_path: Path) -> None:
    """The commands as they stand there; then an agent with them, and who may call it."""
    text = DOCS.read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(# An authority.*?)```", text, re.S)
    subprocess.run(["bash", "-e"], input=block, cwd=tmp_path, text=True, timeout=60, check=True,
                   capture_output=True)  # fmt: skip
    pem = {p.name: p for p in tmp_path.glob("*.*")}
    flags = ["--tls-cert", pem["agent.pem"], "--tls-key", pem["agent.key"]]
    flags += ["--tls-client-ca", pem["ca.pem"]]
    with running_agent(tmp_path / "store", *flags, listen="0.0.0.0:0") as agent:
        address = f"localhost:{agent.address.rpartition(':')[2]}"
        known = Access(address, tls_ca=pem["ca.pem"], tls_cert=pem["laptop.pem"],
                       tls_key=pem["laptop.key"])  # fmt: skip
        with AgentClient(known) as client:
            assert client.live()
        with (
            AgentClient(Access(address, tls_ca=pem["ca.pem"])) as stranger,
            pytest.raises(AgentFault, match="certificate"),
        ):
            stranger.live()


def test_the_python_of_the_docs(
    agent: Agent, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The snippet as it stands there, with this agent, this bundle and a picture for it."""
    (code,) = re.findall(r"```python\n(from pathlib.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    code = code.replace("localhost:8001", agent.address).replace('"out"', repr(str(bundle)))
    inputs, outputs = read_reference(read_bundle(bundle))
    exec(compile(code, str(DOCS), "exec"), {"picture_BHWC": inputs[:1]})
    best, timings = capsys.readouterr().out.split(maxsplit=1)
    assert int(best) == outputs[0].argmax() and "compute_us" in timings


def test_the_docs_name_flags_and_metrics_that_exist(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for verb in ("agent", "profile"):
        answer = edgevit(verb, "--help", cwd=tmp_path)
        lines = [line for line in text.splitlines() if f"edgevit {verb} " in line]
        used = set(re.findall(r" (--[a-z-]+)", " ".join(lines)))
        assert used and used <= set(re.findall(r"--[a-z-]+", answer.out)), verb
    source = (ROOT / "runtime" / "serving" / "metrics.py").read_text(encoding="utf-8")
    for metric in re.findall(r"`(edgevit_\w+)`", text):
        assert f'"{metric.removesuffix("_total")}"' in source, metric


def test_no_file_goes_untested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{file.name}"' in tested for file in FOLDER.iterdir())

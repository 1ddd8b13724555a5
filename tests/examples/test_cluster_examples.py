"""The files of examples/cluster: the bare launch script on real agents, and the cluster files."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from agent_tools import eventually
from cli_tools import ROOT
from coordinator_tools import LABELS, SIDE, TinyPlan, write_plan
from PIL import Image
from ssh_tools import EDGEVIT, FakeSsh, standing_in

from partition.placing.cluster_file import MEASURED, read_cluster
from runtime.client import AgentClient

FOLDER = ROOT / "examples" / "cluster"
SCRIPT = FOLDER / "launch.sh"
LIMIT_S = 180


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TinyPlan:
    return write_plan(tmp_path_factory.mktemp("bare") / "plan")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """As large as the model takes it, so that nothing is scaled."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[FakeSsh]:
    with standing_in(tmp_path) as fake:
        yield fake


def free_ports() -> int:
    """The first of some that nobody has at this moment, and of those 1000 above."""
    for first in range(20000 + os.getpid() % 9000, 31000, 7):
        try:
            for port in (*range(first, first + 4), *range(first + 1001, first + 1004)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def start(*words: object, path: Path | None = None, **more: str) -> Any:
    """The script, with the stand-in for ssh first in the PATH where there is one."""
    env = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "EDGEVIT": str(EDGEVIT), **more,
    }  # fmt: skip
    if path is not None:
        env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    return subprocess.Popen(
        ["sh", str(SCRIPT), *map(str, words)], env=env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: Any) -> tuple[int, str, str]:
    """Its end; then nothing of its session may be left."""
    session = process.pid
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(session, signal.SIGKILL)
        raise
    eventually(lambda: not [p for p in psutil.process_iter() if _lives_in(session, p)])
    assert "Traceback" not in out + err
    return process.returncode, out, err


def _lives_in(session: int, process: psutil.Process) -> bool:
    """Zombies do not: who reaps orphans is the system's affair."""
    with suppress(psutil.Error, OSError):
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False


def label_of(plan: TinyPlan, photo: Path) -> str:
    """What the whole model says, by torch."""
    x_BHWC = np.asarray(Image.open(photo), np.float32)[None] / 255
    return LABELS[int(plan.reference(x_BHWC).argmax())]


def test_all_on_this_machine(plan: TinyPlan, photo: Path) -> None:
    code, out, err = finish(start(plan.path, photo, PORT=str(free_ports())))
    assert code == 0, err
    *devices, answer = out.splitlines()
    assert devices == [f"pi-{i} (sub{i}) here" for i in range(3)]
    assert answer.startswith(f"{photo}: {label_of(plan, photo)}, ") and err == ""


def test_two_of_them_over_ssh(plan: TinyPlan, photo: Path, ssh: FakeSsh) -> None:
    words = ("pi-1=pi@one", "pi-2=pi@two")
    code, out, err = finish(start(plan.path, photo, *words, path=ssh.bin, PORT=str(free_ports())))
    assert code == 0, err
    assert out.splitlines()[:3] == [
        "pi-0 (sub0) here", "pi-1 (sub1) pi@one", "pi-2 (sub2) pi@two",
    ]  # fmt: skip
    assert f": {label_of(plan, photo)}, " in out
    assert not ssh.agents()
    told = ssh.words()
    assert told.count("BatchMode=yes") == 2 and told[told.index("--") + 1] == "pi@one"
    kept = ssh.home / ".local/share/edgevit/launch/pi-1/bundles"
    assert len(list(kept.iterdir())) == 1, "for the next time"


def test_it_serves_until_it_is_ended(plan: TinyPlan, photo: Path) -> None:
    port = free_ports()
    process = start(plan.path, photo, PORT=str(port), KEEP="1")
    said = []
    while not said or "until Ctrl-C" not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], f"{said} {process.stderr.read()}"
    with AgentClient(f"127.0.0.1:{port}") as coordinator:
        assert coordinator.ready()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


def test_ended_while_it_starts(plan: TinyPlan, photo: Path) -> None:
    process = start(plan.path, photo, PORT=str(free_ports()))
    assert process.stdout.readline().startswith("pi-0 ")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143


def test_an_agent_that_cannot_start(plan: TinyPlan, photo: Path) -> None:
    first = free_ports()
    with socket.create_server(("127.0.0.1", first + 1)):
        begun = time.monotonic()
        code, _, err = finish(start(plan.path, photo, PORT=str(first)))
    assert code == 1 and "launch.sh: pi-0 ended: " in err and "cannot listen on" in err
    assert time.monotonic() - begun < LIMIT_S


def test_ssh_that_lets_nobody_in(plan: TinyPlan, photo: Path, ssh: FakeSsh) -> None:
    ssh.failure.write_text("pi@one: Permission denied (publickey).\n")
    process = start(plan.path, photo, "pi-0=pi@one", path=ssh.bin, PORT=str(free_ports()))
    code, _, err = finish(process)
    assert code == 1 and "pi-0 ended: pi@one: Permission denied (publickey)." in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected launch.sh PLAN PHOTO"),
        (["nothing", "photo"], "nothing is no plan"),
        (["PLAN", "gone.jpg"], "there is no picture gone.jpg"),
        (["PLAN", "PHOTO", "pi-9=host"], "the plan uses no device pi-9"),
    ],
)
def test_wrong_words(plan: TinyPlan, photo: Path, words: list[str], said: str) -> None:
    known = {"PLAN": plan.path, "PHOTO": photo}
    code, out, err = finish(start(*(known.get(word, word) for word in words)))
    assert (code, out) == (1, "") and said in err


def test_the_cluster_files() -> None:
    local = read_cluster(FOLDER / "three-local.yaml")
    assert [d.name for d in local.devices] == ["kitchen", "hall", "garage"]
    assert all(d.is_local and d.compute == MEASURED for d in local.devices)
    pis = read_cluster(FOLDER / "two-pis.yaml")
    for device in pis.devices:
        assert device.ssh is not None and device.ssh.host == f"pi@{device.name}.local"
        assert device.ssh.command == "edgevit/bin/edgevit" and device.token_file is not None


def test_the_unit_has_flags_of_the_coordinator_and_time_to_drain() -> None:
    text = (FOLDER / "edgevit-coordinator.service").read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", text, re.M)
    assert command is not None
    words = [sys.executable, "-m", "partition.coordinator_main", "--help"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    used = set(re.findall(r"--[a-z-]+", command[1]))
    assert used and used <= set(re.findall(r"--[a-z-]+", told.stdout))
    grace, stop = (
        re.search(r"--grace (\d+)", text),
        re.search(r"^TimeoutStopSec=(\d+)$", text, re.M),
    )
    assert grace is not None and stop is not None and int(stop[1]) >= int(grace[1]) + 5
    credentials = set(re.findall(r"CREDENTIALS_DIRECTORY}/(\S+)", command[1]))
    assert credentials == set(re.findall(r"^LoadCredential=([^:]+):", text, re.M))


def test_no_file_of_the_cluster_goes_untested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8") + SCRIPT.read_text(encoding="utf-8")
    for file in FOLDER.iterdir():
        assert f'"{file.name}"' in tested or f"/{file.name}" in tested, file.name

"""Starting and ending agents over ssh; the far side is a shell in another home."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from agent_tools import running_agent
from cli_tools import small_disk
from ssh_tools import EDGEVIT, FakeSsh, standing_in

from partition.cluster import ssh as ssh_module
from partition.cluster.ssh import RemoteAgent, SshHost, listen_for
from partition.errors import PartitionError
from partition.placing.cluster_file import ClusterDevice
from runtime.client import AgentClient, AgentFault

STORE = ".local/share/edgevit/cluster"
TOKEN = "s3cret-that-nobody-may-read"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSsh]:
    """First in the PATH."""
    with standing_in(tmp_path) as fake:
        monkeypatch.setenv("PATH", str(fake.bin), prepend=os.pathsep)
        yield fake


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def device(address: str | None = None, **fields: Any) -> ClusterDevice:
    login = {"host": "pi@raspberrypi.local", "command": str(EDGEVIT)} | fields.pop("ssh", {})
    return ClusterDevice(
        name="pi-1", compute=1e9, address=address or f"127.0.0.1:{free_port()}", ssh=login, **fields
    )


class Book:
    """What a launch keeps."""

    def __init__(self) -> None:
        self.remote: dict[str, Any] | None = None

    def ensure(self, host: SshHost) -> RemoteAgent:
        return host.ensure(self.remote, self.record, lambda step: None)

    def record(self, remote: dict[str, Any]) -> None:
        self.remote = remote

    def end(self) -> bool:
        assert self.remote is not None
        return SshHost.end(self.remote)


def refusal(host: SshHost) -> str:
    """Why it cannot be started."""
    with pytest.raises(PartitionError) as found:
        Book().ensure(host)
    assert "Traceback" not in str(found.value)
    return str(found.value)


def test_started_once_used_again_ended(ssh: FakeSsh, tmp_path: Path) -> None:
    host, book = SshHost(device(), tmp_path), Book()
    agent = book.ensure(host)
    assert agent.started and agent.access.address == host.access.address
    (process,) = ssh.agents()
    with AgentClient(agent.access) as client:
        seen = client.describe()
        assert (seen.device_id, seen.name) == (agent.device_id, "pi-1")
    assert process.ppid() != os.getpid() and process.cwd() == str(ssh.home)

    again = book.ensure(host)
    assert again == RemoteAgent(agent.access, agent.device_id, started=False)
    assert ssh.calls() == 1, "an agent that answers needs no ssh"
    assert [p.pid for p in ssh.agents()] == [process.pid]

    assert book.end() and not ssh.agents()
    assert not book.end(), "there is nothing to end a second time"
    anew = book.ensure(host)
    assert anew.started and anew.device_id == agent.device_id, "the same store"
    assert book.end()


def test_the_words_of_ssh(ssh: FakeSsh, tmp_path: Path) -> None:
    (tmp_path / "pi.token").write_text(TOKEN + "\n")
    (tmp_path / "key").write_text("")
    more = {"port": 2222, "identity": "key", "options": ["--queue", "8"]}
    host = SshHost(device(token_file="pi.token", ssh=more), tmp_path)
    book = Book()
    agent = book.ensure(host)
    words = ssh.words()
    assert words[-3:] == ["--", "pi@raspberrypi.local", "sh"]
    assert words[words.index("-p") :][:2] == ["-p", "2222"]
    assert ["-i", str(tmp_path / "key")] == words[words.index("-i") :][:2]
    options = {words[i + 1] for i, word in enumerate(words) if word == "-o"}
    assert {"BatchMode=yes", "ConnectTimeout=10", "ControlMaster=no"} <= options
    (process,) = ssh.agents()
    command = process.cmdline()
    assert command[command.index("--queue") :][:2] == ["--queue", "8"]

    token = ssh.home / STORE / "pi-1" / "token"
    assert token.read_text() == TOKEN + "\n" and stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert TOKEN not in " ".join([*words, *command, str(book.remote)])
    with AgentClient(agent.access.address) as stranger, pytest.raises(AgentFault, match="token"):
        stranger.describe()
    assert book.end() and not token.exists()


def test_an_agent_that_somebody_else_started_is_used_and_never_ended(
    ssh: FakeSsh, tmp_path: Path
) -> None:
    with running_agent(tmp_path / "store") as other:
        book = Book()
        agent = book.ensure(SshHost(device(other.address), tmp_path))
        assert not agent.started and book.remote is None and ssh.calls() == 0
    first, second = Book(), Book()
    host = SshHost(device(), tmp_path)
    assert first.ensure(host).started
    second.remote = dict(first.remote or {}) | {"mark": "0" * 32}
    assert not second.end() and len(ssh.agents()) == 1, "another launch's"
    assert first.end()


def test_a_start_that_was_cut_off_is_found_again(ssh: FakeSsh, tmp_path: Path) -> None:
    """The agent runs there and nobody was told: the next call finds it by its mark."""
    host, book = SshHost(device(), tmp_path), Book()

    def cut(remote: dict[str, Any]) -> None:
        book.record(remote)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.ensure(None, cut, lambda step: None)
    assert not ssh.agents(), "what is recorded comes before what is started"
    assert not book.end()
    assert book.ensure(host).started
    (process,) = ssh.agents()
    process.suspend()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ssh_module, "ANSWER_S", 1.0)
            with pytest.raises(PartitionError, match=f"process {process.pid}, listening on"):
                book.ensure(host)
    finally:
        process.resume()
    assert book.end()


def test_an_agent_that_hangs_is_killed(ssh: FakeSsh, tmp_path: Path) -> None:
    host, book = SshHost(device(), tmp_path), Book()
    book.ensure(host)
    (process,) = ssh.agents()
    process.suspend()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh_module, "END_S", 1.0)
        assert book.end()
    assert not ssh.agents()


def test_a_number_that_was_given_again_is_left_alone(ssh: FakeSsh, tmp_path: Path) -> None:
    """agent.pid outlives a power cut; its number is some other program's then."""
    host, book = SshHost(device(), tmp_path), Book()
    book.ensure(host)
    (process,) = ssh.agents()
    folder = ssh.home / STORE / "pi-1"
    written = (folder / "agent.pid").read_text()
    process.kill()
    process.wait(30)
    with running_agent(tmp_path / "innocent") as innocent:
        (folder / "agent.pid").write_text(written.replace(str(process.pid), str(innocent.pid)))
        assert not book.end() and innocent.alive()
        assert book.ensure(host).started, "nor does it stand in the way of a start"
        assert innocent.alive()
    assert book.end()


def test_two_launches_at_once_start_one_agent(ssh: FakeSsh, tmp_path: Path) -> None:
    host = SshHost(device(), tmp_path)
    books = [Book(), Book()]
    with ThreadPoolExecutor(2) as pool:
        agents = [each.result(120) for each in [pool.submit(b.ensure, host) for b in books]]
    assert len({agent.device_id for agent in agents}) == 1 and len(ssh.agents()) == 1
    assert sorted(book.end() for book in books) == [False, True]


def test_a_login_shell_that_talks(ssh: FakeSsh, tmp_path: Path) -> None:
    ssh.before.write_text("echo 'Welcome to pi!'; echo '@ you have mail'; echo careful >&2\n")
    book = Book()
    assert book.ensure(SshHost(device(), tmp_path)).started
    assert book.end()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Host key verification failed.", "compare it: ssh pi@raspberrypi.local"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "ssh-keygen -R raspberrypi.local"),
        ("pi@pi: Permission denied (publickey,password).", "ssh-copy-id pi@raspberrypi.local"),
        ("ssh: connect to host pi port 22: Connection timed out", "check that it is on"),
        ("ssh: connect to host pi port 22: No route to host", "check that it is on"),
        (
            "kex_exchange_identification: read: Connection reset",
            "ssh to pi@raspberrypi.local failed",
        ),
        ("", "exit code 255, and no word"),
    ],
)
def test_what_ssh_refuses(ssh: FakeSsh, tmp_path: Path, said: str, told: str) -> None:
    ssh.failure.write_text(said + "\n")
    why = refusal(SshHost(device(), tmp_path))
    assert told in why and said in why


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
@pytest.mark.parametrize(
    ("login", "told"),
    [
        ({"host": "nobody@127.0.0.1", "port": 1}, "no ssh server listens there"),
        ({"host": "nobody@no-such-host.invalid"}, "no host is called so"),
        (
            {"host": "nobody@127.0.0.1", "identity": "gone"},
            "gone for nobody@127.0.0.1 is not there",
        ),
    ],
)
def test_what_the_real_ssh_says(tmp_path: Path, login: dict[str, Any], told: str) -> None:
    assert told in refusal(SshHost(device(ssh=login), tmp_path))


def test_no_ssh_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no program 'ssh' in the PATH" in refusal(SshHost(device(), tmp_path))


def test_ssh_that_never_comes_back(
    ssh: FakeSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh.before.write_text("exec sleep 30\n")
    monkeypatch.setattr(ssh_module, "START_S", 0.5)
    monkeypatch.setattr(ssh_module, "MORE_S", 0.5)
    assert "did not come back within 1 s" in refusal(SshHost(device(), tmp_path))


def test_no_edgevit_there(ssh: FakeSsh, tmp_path: Path) -> None:
    for command in ("edgevit-of-nobody", "venv/bin/edgevit", "~/venv/bin/edgevit"):
        why = refusal(SshHost(device(ssh={"command": command}), tmp_path))
        assert f"there is no program '{command}' on pi@raspberrypi.local" in why
        assert "/usr/bin" in why and "command: venv/bin/edgevit" in why
    (ssh.home / "venv" / "bin").mkdir(parents=True)
    (ssh.home / "venv" / "bin" / "edgevit").symlink_to(EDGEVIT)
    book = Book()
    assert book.ensure(SshHost(device(ssh={"command": "venv/bin/edgevit"}), tmp_path)).started
    assert book.end()


def test_the_port_is_taken(ssh: FakeSsh, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        why = refusal(SshHost(device(address), tmp_path))
    assert f"ended at its start: cannot listen on {address}: " in why
    assert f"its log there: {STORE}/pi-1/agent.log" in why and not ssh.agents()


def test_open_to_the_network_without_a_token(ssh: FakeSsh, tmp_path: Path) -> None:
    """The agent's own refusal stays, with what to write in cluster.yaml."""
    port = free_port()
    why = refusal(SshHost(device(f"raspberrypi.invalid:{port}"), tmp_path))
    assert f"--listen 0.0.0.0:{port} is open to the network, and nothing says who may call" in why
    assert "options: [--insecure]" in why and "'token_file'" in why


def test_an_option_that_the_agent_does_not_know(ssh: FakeSsh, tmp_path: Path) -> None:
    why = refusal(SshHost(device(ssh={"options": ["--quueue", "8"]}), tmp_path))
    assert "ended at its start: No such option: --quueue" in why


def test_the_store_cannot_be_written(ssh: FakeSsh, tmp_path: Path) -> None:
    (ssh.home / "file").write_text("")
    why = refusal(SshHost(device(ssh={"store": "file/store"}), tmp_path))
    assert why.startswith("cannot write file/store/pi-1 on pi@raspberrypi.local: mkdir: ")


@pytest.mark.parametrize("token", [True, False])
def test_the_disk_there_is_full(ssh: FakeSsh, tmp_path: Path, token: bool) -> None:
    (tmp_path / "pi.token").write_text(TOKEN)
    given = {"token_file": "pi.token"} if token else {}
    try:
        with small_disk(tmp_path / "small", "64k") as small:
            with suppress(OSError), (small / "rest").open("wb", buffering=0) as rest:
                while True:
                    rest.write(bytes(4096))
            host = SshHost(device(ssh={"store": str(small / "store")}, **given), tmp_path)
            why = refusal(host)
    except PermissionError as error:
        pytest.skip(str(error))
    assert ("No space left on device" if token else "the disk there is full") in why
    assert not ssh.agents()


def test_the_address_is_of_another_device(ssh: FakeSsh, tmp_path: Path) -> None:
    with running_agent(tmp_path / "other") as other:
        host, book = SshHost(device(), tmp_path), Book()
        book.ensure(host)
        elsewhere = SshHost(device(other.address), tmp_path)
        elsewhere._answering = lambda: None  # type: ignore[method-assign] # it comes up meanwhile
        with pytest.raises(PartitionError, match="'address' and 'ssh' are not of the same device"):
            book.ensure(elsewhere)
    assert book.end()


def test_what_is_quoted(ssh: FakeSsh, tmp_path: Path) -> None:
    """Words of cluster.yaml are words over there, whatever is in them."""
    nasty = 'it\'s; touch $HOME/oops `touch oops` "$(touch oops)" * & |'
    login = {"store": f"st {nasty}", "options": ["--load", nasty]}
    why = refusal(SshHost(device(ssh=login), tmp_path))
    assert f"--load {nasty}: no such folder" in why
    assert (ssh.home / f"st {nasty}" / "pi-1" / "store").is_dir()
    assert not list(ssh.home.rglob("oops"))


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("192.168.1.11:8001", "0.0.0.0:8001"),
        ("raspberrypi.local:8001", "0.0.0.0:8001"),
        ("[fe80::1%eth0]:8001", "[::]:8001"),
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("localhost:8001", "127.0.0.1:8001"),
        ("[::1]:8001", "[::1]:8001"),
    ],
)
def test_where_it_listens(address: str, listen: str) -> None:
    assert listen_for(address) == listen

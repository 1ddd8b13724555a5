"""A real device agent for a test: started, asked over a raw channel, ended; certificates for it."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import trustme

from runtime.digest import sha256_file, sha256_tree
from runtime.wire.descriptors import INFERENCE, Message, methods
from runtime.wire.service import call
from runtime.wire.tensors import put_input

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
END_S = 30.0
CALL_S = 60.0
MESSAGE_BYTES = (
    256 * 2**20
)  # more than any agent here takes, so that the agent is the one to refuse


@dataclass
class Agent:
    """A running agent: where it listens, its process, and what it says on stderr."""

    address: str
    metrics: str | None
    process: subprocess.Popen[str]
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        """What it has said so far."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def engines(self) -> list[psutil.Process]:
        """The engine processes, in the order of their start."""
        found = psutil.Process(self.pid).children(recursive=True)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def kill(self) -> None:
        """SIGKILL: as if the power went."""
        self.process.kill()
        self.process.wait(END_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(END_S)

    def sample(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 where there is none yet."""
        assert self.metrics is not None, "start it with --metrics 127.0.0.1:0"
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                has = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= has.items():
                    total += float(found[3])
        return total


@contextmanager
def running_agent(
    store: Path,
    *flags: object,
    load: Iterable[object] = (),
    listen: str = "127.0.0.1:0",
    python: Path | None = None,
) -> Iterator[Agent]:
    """`edgevit agent --json` until the block ends; then no process of it may be left.

    `python` is another interpreter, in whose environment the package is installed.
    """
    descriptor, said_path = tempfile.mkstemp(suffix=".stderr")
    os.close(descriptor)
    said = Path(said_path)
    words = ["agent", "--listen", listen, "--store", store, "--json", *flags]
    words += [word for bundle in load for word in ("--load", bundle)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python is None:
        env["PYTHONPATH"] = str(ROOT)
    with said.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [str(python or sys.executable), "-m", "edgevit", *map(str, words)],
            cwd=store.parent, env=env | {"OMP_NUM_THREADS": "1"}, text=True, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        hello = _first_object(process)
        assert hello and "address" in hello, f"it did not start: {hello} {said.read_text()}"
        agent = Agent(hello["address"], hello["metrics"], process, said)
        try:
            yield agent
        finally:
            engines = agent.engines() if agent.alive() else []
            _end(process)
            _, left = psutil.wait_procs(engines, END_S)
            for engine in left:
                engine.kill()
        assert not left, f"engine processes outlive their agent: {left}"
        assert "Traceback" not in agent.stderr(), agent.stderr()
    finally:
        _end(process)
        if process.stdout is not None:
            process.stdout.close()
        said.unlink()


def _first_object(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The JSON object on stdout; None where none comes in time."""
    found: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            with suppress(json.JSONDecodeError):
                found.put(json.loads(text))
                return
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        return found.get(timeout=START_S)
    except queue.Empty:
        return None


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def channel_to(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Any]:
    """A plain gRPC channel with generous limits and no retries, so that every answer is seen."""
    options = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    try:
        yield channel
    finally:
        channel.close()


def ask(
    channel: Any, name: str, request: Message | None = None, /, *, of: str = INFERENCE,
    timeout: float = CALL_S, metadata: Any = None, **fields: Any,
) -> Message:  # fmt: skip
    """One unary call of a service by its name, with a message or the fields of one.

    Raises grpc.RpcError.
    """
    method = methods(of)[name]
    message = method.request(**fields) if request is None else request
    return call(channel, method)(message, timeout=timeout, metadata=metadata)


def refusal(function: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and details with which a call is refused; an answer is a failure of the test."""
    try:
        answer = function()
    except grpc.RpcError as error:
        return error.code(), error.details()  # type: ignore[attr-defined]
    raise AssertionError(f"expected a refusal, got {str(answer)[:300]}")


def infer_request(model: str, name: str, x: np.ndarray, **fields: Any) -> Message:
    """A ModelInferRequest with one raw input."""
    request = methods(INFERENCE)["ModelInfer"].request(model_name=model, **fields)
    put_input(request, name, x)
    return request


def input_name(channel: Any, model: str) -> str:
    """The name of a model's only input."""
    (spec,) = ask(channel, "ModelMetadata", name=model).inputs
    return str(spec.name)


def engines_of(pid: int) -> list[psutil.Process]:
    """The engine processes of an agent, those alone that have come as far as their own program.

    Between fork and exec a child still bears its parent's command line, and the parent waits for
    it: who suspends it there suspends the agent.
    """
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if any("runtime.serving.engines.worker" in word for word in child.cmdline()):
                found.append(child)
    return found


def eventually(check: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait until `check` gives something true; the last thing it gave is in the error."""
    end = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < end, f"still {found!r} after {timeout_s} s"
        time.sleep(0.05)


def upload_parts(
    folder: Path,
    name: str,
    chunk: int = 4096,
    *,
    paths: dict[str, str] | None = None,
    skip: dict[str, int] | None = None,
    digest: str | None = None,
) -> Iterator[Message]:
    """The requests of UploadBundle for a folder, written from the protocol and nothing else.

    `paths` renames files in the header, `skip` is how many bytes of a file are there already.
    """
    request = methods("edgevit.v1.DeviceService")["UploadBundle"].request
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    header = request()
    header.header.name, header.header.digest = name, digest or sha256_tree(folder)
    for file in files:
        path = file.relative_to(folder).as_posix()
        header.header.files.add(
            path=(paths or {}).get(path, path), size=file.stat().st_size, sha256=sha256_file(file)
        )
    yield header
    for number, file in enumerate(files):
        data = file.read_bytes()
        start = (skip or {}).get(file.relative_to(folder).as_posix(), 0)
        for offset in range(start, len(data), chunk):
            part = request()
            part.chunk.file, part.chunk.offset = number, offset
            part.chunk.data = data[offset : offset + chunk]
            part.chunk.sha256 = hashlib.sha256(part.chunk.data).digest()
            yield part


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a server's and a client's certificate of it, and bad ones."""

    folder: Path
    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    expired: tuple[Path, Path]
    foreign: tuple[Path, Path]
    foreign_ca: Path

    def flags(self) -> list[str]:
        """What an agent that asks for client certificates is started with."""
        return [
            "--tls-cert", str(self.server[0]), "--tls-key", str(self.server[1]),
            "--tls-client-ca", str(self.ca),
        ]  # fmt: skip


def certificates(folder: Path) -> Certificates:
    """Make them: pairs are (certificate chain, key). `expired` ended yesterday."""
    folder.mkdir(parents=True, exist_ok=True)
    ours, others = trustme.CA(), trustme.CA()
    ca, foreign_ca = folder / "ca.pem", folder / "foreign_ca.pem"
    ours.cert_pem.write_to_path(str(ca))
    others.cert_pem.write_to_path(str(foreign_ca))
    now = datetime.now(UTC)
    past = {"not_before": now - timedelta(days=9), "not_after": now - timedelta(days=1)}

    def pair(name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return chain, key

    names = ("localhost", "127.0.0.1")
    return Certificates(
        folder, ca,
        pair("server", ours.issue_cert(*names)),
        pair("client", ours.issue_cert("client.test")),
        pair("expired", ours.issue_cert(*names, **past)),
        pair("foreign", others.issue_cert(*names)),
        foreign_ca,
    )  # fmt: skip


def credentials(ca: Path, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    """A client's credentials: whom it trusts, and whom it says it is."""
    chain, key = (path.read_bytes() for path in pair) if pair else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)

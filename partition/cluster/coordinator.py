"""The coordinator's process of a launch: what it is to be started with, and whether it runs so."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from partition.cluster.book import Book
from partition.cluster.local import END_S, Tell, again
from partition.cluster.processes import end, process_lives, python, start, wait_ready
from partition.cluster.state import CoordinatorState, ProcessState
from partition.errors import PartitionError
from partition.placing.cluster_file import NAME as CLUSTER_NAME
from partition.plan import Plan
from runtime.client import Access, AgentClient, read_token
from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address, parse_address
from runtime.serving.front import FrontConfig, guarded

LOG = "coordinator.log"
ANSWER_S = 5.0
SETTLE_S = 10.0  # a worker comes back by itself in less than 2 s
SETTLE_POLL_S = 0.1


@dataclass(frozen=True)
class CoordinatorOptions:
    """What a coordinator is started with, as in partition.coordinator.CoordinatorConfig."""

    listen: str = "127.0.0.1:8000"
    worker_timeout_s: float = 5.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    metrics: str | None = None

    def check(self) -> None:
        """Before anything is started. Raises RuntimeFault as the coordinator itself would."""
        if not 0 < self.worker_timeout_s < math.inf:
            raise RuntimeFault(
                f"expected a --worker-timeout above 0 seconds, got {self.worker_timeout_s}"
            )
        guarded(
            FrontConfig(
                listen=self.listen, tls_cert=self.tls_cert, tls_key=self.tls_key,
                tls_client_ca=self.tls_client_ca, token_file=self.token_file,
                insecure=self.insecure, metrics=self.metrics,
            )
        )  # fmt: skip

    def said(self) -> dict[str, str | float | bool | None]:
        """All but the address to listen at, for the state; paths are whole."""
        return {
            "worker_timeout": self.worker_timeout_s,
            "insecure": self.insecure,
            "metrics": self.metrics,
            **{name: str(path.absolute()) if path else None for name, path in self.files().items()},
        }

    def files(self) -> dict[str, Path | None]:
        """The files that it reads, by the names of their flags."""
        return {
            "tls_cert": self.tls_cert,
            "tls_key": self.tls_key,
            "tls_client_ca": self.tls_client_ca,
            "token_file": self.token_file,
        }

    def words(self) -> list[str]:
        """The same as words of a command line."""
        words = []
        for name, value in self.said().items():
            if value is not None and value is not False:
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else [str(value)]
        return words


@dataclass(frozen=True)
class Ensured:
    """A coordinator that takes calls; started: it was not there, or not as it should be.

    model is what clients call the whole model.
    """

    address: str
    metrics: str | None
    model: str
    started: bool


def ensure_coordinator(
    plan: Plan,
    options: CoordinatorOptions,
    addresses: Mapping[str, str],
    told: Mapping[str, str],
    book: Book,
    tell: Tell,
) -> Ensured:
    """The coordinator that runs, where it is one of this plan, these agents and these options.

    Else a new one in its place. addresses are those of all agents, by device; `told` the ones that
    cluster.yaml does not say. Raises PartitionError where it does not start.
    """
    files = _files_digest(plan, options)
    last = book.state.coordinator
    if last is not None and process_lives(last.process):
        as_wanted = (
            (last.plan_digest, last.devices, last.files_sha256)
            == (plan.digest, addresses, files)
            and (last.listen, last.options) == (options.listen, options.said())
        )  # fmt: skip
        running = _running(last.process, book, options) if as_wanted else None
        if running is not None:
            return running
        tell("ending the coordinator that runs")
        end(last.process, END_S)
    listen = again(parse_address(options.listen), last.address if last is not None else None)
    words = python(
        "partition.coordinator_main", plan.path.absolute(), "--listen", listen,
        *(word for name, address in told.items() for word in ("--device", f"{name}={address}")),
        *options.words(),
    )  # fmt: skip

    def recorded(process: ProcessState) -> None:
        with book.change() as state:
            state.coordinator = CoordinatorState(
                address=str(listen) if listen.port or listen.path else None,
                process=process, plan_digest=plan.digest, devices=dict(addresses),
                files_sha256=files, listen=options.listen, options=options.said(),
            )  # fmt: skip

    tell("starting the coordinator")
    process = start(words, book.folder, LOG, recorded)
    return replace(_ready(process, book), started=True)


def missing(coordinator: Ensured, options: CoordinatorOptions) -> str:
    """Once it has all workers, nothing; else, after SETTLE_S, which it lacks and why.

    A coordinator with TLS is not asked: what it takes to call it is not known here.
    """
    if options.tls_cert is not None:
        return ""
    until = time.monotonic() + SETTLE_S
    try:
        token = read_token(options.token_file) if options.token_file else None
        with AgentClient(Access(coordinator.address, token=token)) as client:
            while (out := _out(client, coordinator.model)) and time.monotonic() < until:
                time.sleep(SETTLE_POLL_S)
    except RuntimeFault as error:
        return str(error)
    return "; ".join(out)


def _out(client: AgentClient, model: str) -> list[str]:
    """The workers that cannot be asked now, and why."""
    workers = json.loads(client.model_metadata(model).properties["workers"])
    return [f"{name}: {facts['reason']}" for name, facts in workers.items() if not facts["usable"]]


def end_coordinator(book: Book) -> bool:
    """End it, if it is there; whether it was."""
    last = book.state.coordinator
    if last is None:
        return False
    ended = end(last.process, END_S)
    with book.change() as state:
        state.coordinator = None
    return ended


def _running(process: ProcessState, book: Book, options: CoordinatorOptions) -> Ensured | None:
    """The coordinator of a process that is there; None where it hangs."""
    try:
        found = _ready(process, book)  # at once, but where a launch was killed meanwhile
    except PartitionError:
        if book.cancelled.is_set():
            raise
        return None
    return found if _answers(found.address, tls=options.tls_cert is not None) else None


def _ready(process: ProcessState, book: Book) -> Ensured:
    """Once it takes calls. Raises PartitionError."""
    facts = wait_ready(process, book.folder, book.cancelled)
    with book.change() as state:
        if state.coordinator is not None:
            state.coordinator.address = facts["address"]
            state.coordinator.metrics = facts["metrics"]
    return Ensured(facts["address"], facts["metrics"], facts["model"], started=False)


def _answers(address: str, *, tls: bool) -> bool:
    """Whether it does not hang. With TLS a handshake tells; we may have no certificate for more."""
    if tls:
        return _shakes_hands(parse_address(address))
    try:
        with AgentClient(Access(address)) as client:
            client.health(timeout_s=ANSWER_S)  # which asks for no token
    except RuntimeFault:
        return False
    return True


def _shakes_hands(address: Address) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is our own process
    context.set_alpn_protocols(["h2"])
    try:
        family = socket.AF_UNIX if address.path else address.family
        with socket.socket(family, socket.SOCK_STREAM) as plain:
            plain.settimeout(ANSWER_S)
            plain.connect(str(address.path) if address.path else (address.host, address.port))
            context.wrap_socket(plain).close()
            return True
    except OSError:
        return False


def _files_digest(plan: Plan, options: CoordinatorOptions) -> str:
    """sha256 over the files that a coordinator reads at its start. Raises PartitionError."""
    total = hashlib.sha256()
    for file in (plan.path / CLUSTER_NAME, *options.files().values()):
        try:
            total.update(hashlib.sha256(file.read_bytes() if file else b"").digest())
        except OSError as error:
            raise PartitionError(f"cannot read {file}: {error.strerror}") from error
    return total.hexdigest()

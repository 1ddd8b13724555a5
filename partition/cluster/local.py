"""Agents on this machine: each a process of ours with a store of its own, reached by loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from partition.cluster.book import Book
from partition.cluster.processes import end, process_lives, python, start, wait_ready
from partition.cluster.state import ProcessState, writing
from partition.errors import PartitionError
from runtime.client import AgentClient
from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address, parse_address

ANY_PORT = Address("127.0.0.1", 0)
END_S = 15.0  # what a server is given: its own 10 s for running calls, and some for itself
FREE_S = 2.0
ANSWER_S = 10.0  # an agent that takes longer to say who it is, hangs

Tell = Callable[[str], None]
"""Told what is done now, in a few words."""


@dataclass(frozen=True)
class LocalAgent:
    """An agent that answers. started: it was not there, and now is."""

    address: str
    device_id: str
    started: bool


def ensure_local(name: str, book: Book, tell: Tell) -> LocalAgent:
    """The agent of a device on this machine: the one that runs, else a new one on its store.

    A new one listens where the last one did, if that port is free, so that the coordinator finds it
    again. Raises PartitionError where it does not start.
    """
    device = book.state.devices[name]
    process = device.process
    if process is not None and process_lives(process):
        found = _running(name, process, book)
        if found is not None:
            return found
        tell("its agent hangs; ending it")
        end(process, END_S)
    listen = again(ANY_PORT, device.address)
    inputs = book.folder / "inputs" / name
    with writing(inputs):
        inputs.mkdir(parents=True, exist_ok=True)
    words = python(
        "edgevit", "agent", "--listen", listen, "--store", book.folder / "stores" / name,
        "--inputs", inputs, "--name", name, "--json",
    )  # fmt: skip

    def recorded(process: ProcessState) -> None:
        with book.change() as state:
            state.devices[name].process, state.devices[name].started = process, True

    tell("starting its agent")
    process = start(words, book.folder, f"logs/{name}.log", recorded)
    return replace(_ready(name, process, book), started=True)


def _running(name: str, process: ProcessState, book: Book) -> LocalAgent | None:
    """The agent of a process that is there; None where it hangs."""
    try:
        found = _ready(name, process, book)  # at once, but where a launch was killed meanwhile
        with AgentClient(found.address) as agent:
            same = agent.describe(timeout_s=ANSWER_S).device_id == found.device_id
            return found if same else None
    except (PartitionError, RuntimeFault):
        if book.cancelled.is_set():
            raise
        return None


def _ready(name: str, process: ProcessState, book: Book) -> LocalAgent:
    """Once it is ready. Raises PartitionError."""
    facts = wait_ready(process, book.folder, book.cancelled)
    with book.change() as state:
        device = state.devices[name]
        device.address, device.device_id = facts["address"], facts["device_id"]
    return LocalAgent(facts["address"], facts["device_id"], started=False)


def again(wanted: Address, last: str | None) -> Address:
    """Where to listen: with any port wanted, at the last one's if that is free still."""
    if last is None or wanted.path is not None or wanted.port != 0:
        return wanted
    before = parse_address(last)
    return before if before.host == wanted.host and _gets_free(before) else wanted


def _gets_free(address: Address) -> bool:
    """Whether a port is free, at least soon: the threads of who was killed there die one by one."""
    until = time.monotonic() + FREE_S
    while not _is_free(address):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_free(address: Address) -> bool:
    with socket.socket(address.family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError:
            return False
    return True

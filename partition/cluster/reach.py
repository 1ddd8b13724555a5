"""How an agent comes to be there: a process of ours, one over ssh, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partition.cluster.book import Book
from partition.cluster.local import ensure_local
from partition.cluster.ssh import SshHost
from partition.cluster.state import DeviceState, Kind
from partition.placing.cluster_file import ClusterDevice, access_to
from runtime.client import Access, AgentClient

Tell = Callable[[str], None]
"""Told what is done now, in a few words."""


@dataclass(frozen=True)
class Reached:
    """An agent that answers. started: it was not there, and now is."""

    access: Access
    started: bool


Reach = Callable[[ClusterDevice, Path, Book, Tell], Reached]
"""For a device of the cluster file in this folder. Raises PartitionError or RuntimeFault."""


def kind_of(device: ClusterDevice) -> Kind:
    """How its agent comes to be there."""
    if device.is_local:
        return "local"
    return "ssh" if device.ssh is not None else "given"


def logs_in_otherwise(device: ClusterDevice, folder: Path, known: DeviceState) -> bool:
    """Whether its agent was started over ssh in another way than cluster.yaml says now."""
    now = device.beside(folder).ssh
    if known.remote is None or now is None:
        return False
    return bool(known.remote.get("login") != now.model_dump(mode="json"))


def _local(device: ClusterDevice, folder: Path, book: Book, tell: Tell) -> Reached:
    found = ensure_local(device.name, book, tell)
    return Reached(Access(found.address), found.started)


def _ssh(device: ClusterDevice, folder: Path, book: Book, tell: Tell) -> Reached:
    def recorded(remote: dict[str, Any]) -> None:
        with book.change() as state:
            known = state.devices[device.name]
            known.remote, known.started = remote, True

    found = SshHost(device, folder).ensure(book.state.devices[device.name].remote, recorded, tell)
    _met(device, folder, found.device_id, book)
    return Reached(found.access, found.started)


def _given(device: ClusterDevice, folder: Path, book: Book, tell: Tell) -> Reached:
    tell("asking its agent")
    access = access_to(device, folder)
    with AgentClient(access) as agent:
        device_id = agent.describe().device_id
    _met(device, folder, device_id, book)
    return Reached(access, started=False)


def _met(device: ClusterDevice, folder: Path, device_id: str, book: Book) -> None:
    """Note how it is reached: a stop has to, whatever the cluster file says by then."""
    whole = device.beside(folder.absolute())
    with book.change() as state:
        known = state.devices[device.name]
        known.address, known.device_id = device.address, device_id
        known.tls, known.token_file = whole.tls, whole.token_file


REACH: dict[Kind, Reach] = {"local": _local, "ssh": _ssh, "given": _given}

"""Leave a device as it was before: end the agent that a launch started, unload what it loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from partition.cluster.book import Book
from partition.cluster.local import END_S
from partition.cluster.processes import end
from partition.cluster.ssh import SshHost
from partition.cluster.state import DeviceState, Kind
from partition.errors import PartitionError
from runtime.client import Access, AgentClient
from runtime.devices.file import known_device
from runtime.errors import RuntimeFault


@dataclass
class Left:
    """What leaving a device took: whether an agent was ended, and the models that were unloaded."""

    ended: bool = False
    unloaded: list[str] = field(default_factory=list)


def leave(name: str, book: Book) -> Left:
    """End its agent where a launch started that, else unload what one loaded.

    What was uploaded stays, and is remembered. Raises PartitionError or RuntimeFault where the
    device cannot be reached.
    """
    device = book.state.devices[name]
    left = LEAVE[device.kind](name, device)
    with book.change() as state:
        known = state.devices[name]
        known.process, known.remote, known.started = None, None, False
        known.loaded, known.models = [], {}
    return left


def forget(name: str, book: Book) -> None:
    """Leave a device for good, with nothing of ours on it. Raises as leave."""
    device = book.state.devices[name]
    if device.kind == "local":
        leave(name, book)
        shutil.rmtree(book.folder / "stores" / name, ignore_errors=True)
    else:
        with suppress(*_IS_GONE if device.started else ()):
            if device.loaded or device.pushed:
                _unload(_access(name, device), device.loaded, device.pushed)
        leave(name, book)
    with book.change() as state:
        del state.devices[name]


def drop_old_plan(name: str, access: Access, digest: str, book: Book) -> None:
    """Unload and remove what a launch brought to a device for another plan than that of `digest`.

    Raises RuntimeFault where its agent does not answer.
    """
    device = book.state.devices[name]
    if device.plan_digest == digest:
        return
    if device.loaded or device.pushed:
        _unload(access, device.loaded, device.pushed)
    with book.change() as state:
        known = state.devices[name]
        known.plan_digest, known.models, known.loaded, known.pushed = digest, {}, [], []


def _leave_local(name: str, device: DeviceState) -> Left:
    return Left(ended=device.process is not None and end(device.process, END_S))


def _leave_ssh(name: str, device: DeviceState) -> Left:
    if not device.started or device.remote is None:
        return _leave_given(name, device)
    left = Left(ended=SshHost.end(device.remote))
    if not left.ended:  # it had gone, and by now somebody else's may have been there
        with suppress(*_IS_GONE):
            return _leave_given(name, device)
    return left


def _leave_given(name: str, device: DeviceState) -> Left:
    if not device.loaded:
        return Left()
    return Left(unloaded=_unload(_access(name, device), device.loaded))


LEAVE: dict[Kind, Callable[[str, DeviceState], Left]] = {
    "local": _leave_local, "ssh": _leave_ssh, "given": _leave_given,
}  # fmt: skip
_IS_GONE = (PartitionError, RuntimeFault)


def _unload(access: Access, models: Sequence[str], bundles: Sequence[str] = ()) -> list[str]:
    """The models that were there to be unloaded; those of the bundles are, too, and then these are
    removed. Raises RuntimeFault where nobody answers."""
    with AgentClient(access) as agent:
        unloaded = [
            model.name
            for model in agent.describe().models
            if model.name in models or (model.target and model.name.partition("/")[0] in bundles)
        ]
        for name in unloaded:
            agent.unload(name)
        for bundle in bundles:
            with suppress(RuntimeFault):  # its owner has removed it, or made use of it
                agent.remove(bundle)
    return unloaded


def _access(name: str, device: DeviceState) -> Access:
    """As it was reached. Raises RuntimeFault where a file of it has gone."""
    address = str(device.address)
    return known_device(name, address, device.tls, device.token_file, Path.cwd()).access()

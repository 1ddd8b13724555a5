"""Stop: end what launches of a plan started, unload what they loaded, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from partition.cluster.book import Book
from partition.cluster.coordinator import end_coordinator
from partition.cluster.launch import Told, side_by_side
from partition.cluster.leave import Left, leave
from partition.cluster.state import DeviceState, Kind, folder_of, locked, read_state
from partition.errors import PartitionError
from partition.plan import read_plan
from runtime.errors import RuntimeFault


@dataclass
class DeviceStop:
    """What became of a device; `problem` is empty where nothing of ours is left there."""

    name: str
    kind: Kind
    left: Left = field(default_factory=Left)
    problem: str = ""


@dataclass
class Stopped:
    """What a stop did; all empty where nothing of it ran. coordinator: it was there to end."""

    coordinator: bool = False
    coordinator_problem: str = ""
    devices: list[DeviceStop] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Whatever is left."""
        found = [f"{device.name}: {device.problem}" for device in self.devices if device.problem]
        if self.coordinator_problem:
            found.insert(0, f"coordinator: {self.coordinator_problem}")
        return found


def stop(plan_path: Path, told: Told) -> Stopped:
    """End what the launches of a plan started; its bundles stay where they were brought.

    The plan itself may be gone. Raises PartitionError where the state is not right, another launch
    or stop is at work, or there is neither plan nor cluster.
    """
    stopped = Stopped()
    if not folder_of(plan_path).is_dir():
        read_plan(plan_path)  # nothing to stop is no mistake, no plan is one
        return stopped
    with locked(plan_path) as folder:
        state = read_state(plan_path)
        if state is None:
            return stopped
        book = Book(plan_path, folder, state)
        stopped.devices = [
            DeviceStop(name, known.kind) for name, known in state.devices.items() if _in_use(known)
        ]
        told("coordinator", "ending it")
        try:
            stopped.coordinator = end_coordinator(book)
        except PartitionError as error:
            stopped.coordinator_problem = str(error)
        told("coordinator", "ended")
        side_by_side([partial(_leave, each, book, told) for each in stopped.devices], book)
    return stopped


def _in_use(device: DeviceState) -> bool:
    """Whether something of ours may run there."""
    return device.started or device.process is not None or bool(device.loaded)


def _leave(result: DeviceStop, book: Book, told: Told) -> None:
    told(result.name, "leaving it")
    try:
        result.left = leave(result.name, book)
    except (PartitionError, RuntimeFault) as error:
        result.problem = str(error)
    told(result.name, "failed" if result.problem else "left")

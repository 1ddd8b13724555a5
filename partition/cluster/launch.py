"""Launch: an agent for every device of a plan, its bundles on it, and a coordinator over them.

What is there already stays as it is, so that a second launch changes nothing, and one after a crash
mends what is broken. Each process is written down before it runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from partition.cluster.book import Book
from partition.cluster.coordinator import (
    CoordinatorOptions,
    Ensured,
    end_coordinator,
    ensure_coordinator,
    missing,
)
from partition.cluster.deploy import Step, Wanted, deploy, wanted_on
from partition.cluster.leave import drop_old_plan, forget, leave
from partition.cluster.reach import REACH, Reached, kind_of, logs_in_otherwise
from partition.cluster.state import DeviceState, Kind, RunState, locked, read_state
from partition.errors import PartitionError
from partition.placing.cluster_file import ClusterDevice
from partition.plan import Plan, check_files, read_plan
from runtime.errors import RuntimeFault

LEFT_S = 2.0  # after Ctrl-C, for threads that are about to end

Told = Callable[[str, str], None]
"""A device, or 'coordinator', and what is done there now; one of FINISHED comes last. From any
thread."""
FINISHED = frozenset({"ready", "failed", "ended", "left"})


@dataclass
class DeviceLaunch:
    """What became of a device. `problem` is empty where it serves all that the plan asks of it.

    started: its agent was not there, and now is. pushed and loaded are as of deploy.
    """

    name: str
    kind: Kind
    submodels: list[str]
    address: str | None = None
    started: bool = False
    pushed: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.started or self.pushed or self.loaded)


@dataclass
class Launched:
    """What became of a launch. notes are about devices that the plan no longer has."""

    plan: Plan
    devices: list[DeviceLaunch]
    coordinator: Ensured | None = None
    coordinator_problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that keeps the cluster from being whole."""
        found = [f"{device.name}: {device.problem}" for device in self.devices if device.problem]
        if self.coordinator_problem:
            found.append(f"coordinator: {self.coordinator_problem}")
        return found

    @property
    def changed(self) -> bool:
        """Whether it was not all there before."""
        started = self.coordinator is not None and self.coordinator.started
        return started or any(device.changed for device in self.devices)


@dataclass(frozen=True)
class _Task:
    """A device in use, what it is to serve, and what became of it so far."""

    device: ClusterDevice
    wanted: list[Wanted]
    result: DeviceLaunch


def launch(plan_path: Path, options: CoordinatorOptions, told: Told) -> Launched:
    """Bring the cluster of a plan up, or what is missing of it.

    A device that cannot be had is a problem in the answer and does not hold up the others. Raises
    PartitionError, CheckFailed or RuntimeFault where the plan, an option or the state is not right,
    or another launch is at work; then nothing was started.
    """
    plan = read_plan(plan_path)
    check_files(plan)
    options.check()
    tasks = _tasks(plan)
    with locked(plan_path) as folder:
        state = read_state(plan_path) or RunState(plan_digest=plan.digest)
        book = Book(plan_path, folder, state)
        launched = Launched(plan, [task.result for task in tasks])
        try:
            launched.notes = _know(plan, tasks, book, told)
            side_by_side([partial(_bring_up, plan, task, book, told) for task in tasks], book)
            with book.change() as state:
                state.plan_digest = plan.digest
            _coordinate(launched, tasks, options, book, told)
        finally:
            book.close()
    return launched


def side_by_side(works: Sequence[Callable[[], None]], book: Book) -> None:
    """Do all at the same time; what one raises is raised here. An interrupt closes the book, and
    leaves those behind that take longer than LEFT_S to notice."""
    raised: list[Exception] = []

    def do(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # of ours: what a device can do wrong is in its result
            raised.append(error)

    threads = [threading.Thread(target=do, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # in pieces: a signal is handled between them
    except BaseException:
        book.close()
        until = time.monotonic() + LEFT_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        raise
    if raised:
        raise raised[0]


def _tasks(plan: Plan) -> list[_Task]:
    """The devices that serve something, in the order of the plan. Raises PartitionError."""
    cluster = {device.name: device for device in plan.cluster().devices}
    tasks = []
    for planned in plan.record.devices:
        device = cluster.get(planned.name)
        wanted = wanted_on(plan, planned.name, device.threads if device else 1)
        if not wanted:
            continue
        if device is None:
            raise PartitionError(
                f"{plan.path}/cluster.yaml has no device '{planned.name}', which the plan puts "
                f"{wanted[0].submodel} on; put it back, or partition again"
            )
        result = DeviceLaunch(device.name, kind_of(device), [each.submodel for each in wanted])
        tasks.append(_Task(device, wanted, result))
    return tasks


def _bring_up(plan: Plan, task: _Task, book: Book, told: Told) -> None:
    """One device: its agent, then its bundles. What goes wrong is in the task's result."""
    result = task.result
    tell = partial(told, result.name)
    try:
        reached = REACH[result.kind](task.device, plan.path, book, tell)
        result.address, result.started = reached.access.address, reached.started
        drop_old_plan(result.name, reached.access, plan.digest, book)
        _deploy(task, reached, book, tell)
    except (PartitionError, RuntimeFault) as error:
        result.problem = str(error)
    tell("failed" if result.problem else "ready")


def _deploy(task: _Task, reached: Reached, book: Book, tell: Callable[[str], None]) -> None:
    name, result = task.result.name, task.result

    def noted(step: Step) -> None:
        """What is brought there is written down: a name of ours once it is, a load before it is."""
        if step.kind == "pushing":
            tell(f"push {step.submodel}: {step.there / 1e6:.1f} of {step.size / 1e6:.1f} MB")
        elif step.kind == "loading":
            tell(f"load {step.name}")
        with book.change() as state:
            device = state.devices[name]
            known = {"pushed": device.pushed, "loading": device.loaded}.get(step.kind)
            if known is not None and step.name not in known:
                known.append(step.name)

    deployed = deploy(reached.access, task.wanted, noted)
    result.pushed, result.loaded = deployed.pushed, deployed.loaded
    result.problem = "; ".join(f"{part}: {why}" for part, why in deployed.failed.items())
    with book.change() as state:
        state.devices[name].models = deployed.models


def _know(plan: Plan, tasks: list[_Task], book: Book, told: Told) -> list[str]:
    """Forget devices that the plan no longer has, or has elsewhere, and note down those that it
    has; what went wrong."""
    wanted = {task.device.name: task for task in tasks}
    notes = []
    for name, known in book.state.devices.items():
        task = wanted.get(name)
        part: Callable[[str, Book], object]
        if task is None or _is_elsewhere(task, known):
            part = forget
        elif logs_in_otherwise(task.device, plan.path, known):
            part = leave  # and it is started anew
        else:
            continue
        told(name, "leaving it")
        try:
            part(name, book)
        except (PartitionError, RuntimeFault) as error:
            if known.kind == "local":
                raise  # or nobody would know of its process
            notes.append(f"{name}, as it was before: {error}")
            if task is not None or not known.loaded:  # else a stop may still unload it
                with book.change() as state:
                    del state.devices[name]
    with book.change() as state:
        for task in tasks:
            state.devices.setdefault(task.device.name, DeviceState(kind=task.result.kind))
    return notes


def _is_elsewhere(task: _Task, known: DeviceState) -> bool:
    """Whether what is known of a device is of another one than is to be used now."""
    if known.kind != task.result.kind:
        return True
    return known.kind != "local" and known.address not in (None, task.device.address)


def _coordinate(
    launched: Launched, tasks: list[_Task], options: CoordinatorOptions, book: Book, told: Told
) -> None:
    """The coordinator over what is there; devices that are not may come later."""
    devices = book.state.devices
    addresses, lacking = {}, []
    for task in tasks:
        name = task.device.name
        address = devices[name].address or task.device.address
        if address is None:
            lacking.append(name)
        else:
            addresses[name] = address
    if lacking:
        launched.coordinator_problem = (
            f"not started, since nobody knows where {', '.join(lacking)} will listen"
        )
        end_coordinator(book)
        return
    local = {r.name: addresses[r.name] for r in launched.devices if r.kind == "local"}
    tell = partial(told, "coordinator")
    try:
        found = ensure_coordinator(launched.plan, options, addresses, local, book, tell)
    except PartitionError as error:
        launched.coordinator_problem = str(error)
        end_coordinator(book)
    else:
        launched.coordinator = found
        if not launched.problems:  # else it is known who is missing
            tell("waiting for its workers")
            launched.coordinator_problem = missing(found, options)
    tell("failed" if launched.coordinator_problem else "ready")

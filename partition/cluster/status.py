"""How a cluster is: the coordinator asked for its view, and every agent asked itself, at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from partition.cluster.asking import Caller, CoordinatorView, WorkerView
from partition.cluster.running import Running, RunningDevice
from partition.plan import PlannedSubmodel
from runtime.devices.survey import Seen
from runtime.devices.survey import survey as survey_agents
from runtime.errors import RuntimeFault

DEADLINE_S = 3.0

WorkerState = Literal["ready", "out", "unreachable"]
CoordinatorState = Literal["ready", "degraded", "down"]


@dataclass(frozen=True)
class WorkerStatus:
    """One sub-model on one device. `reason` says why it is not ready.

    p50_ms is the coordinator's, of its last answers; None where it has had none, or cannot be
    asked.
    """

    submodel: str
    role: Literal["primary", "replica"]
    state: WorkerState
    reason: str = ""
    p50_ms: float | None = None


@dataclass(frozen=True)
class DeviceStatus:
    """One device. Memory is bytes, the temperature degrees Celsius, None where it does not tell.

    last_seen_s is how long ago anything came from it, 0 where it answered now. `note` is what else
    is to be known.
    """

    name: str
    address: str | None
    workers: tuple[WorkerStatus, ...]
    temperature_c: float | None = None
    memory_available: int | None = None
    memory_agent: int | None = None
    last_seen_s: float | None = None
    note: str = ""


@dataclass(frozen=True)
class CoordinatorStatus:
    """The coordinator: down where it cannot be asked or no worker can answer.

    plan_digest is of the plan that it serves, blind the classes that no answer knows now.
    """

    address: str | None
    state: CoordinatorState
    reason: str = ""
    plan_digest: str | None = None
    missing: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClusterStatus:
    """All of it, with what mends it."""

    plan_digest: str
    coordinator: CoordinatorStatus
    devices: tuple[DeviceStatus, ...]

    @property
    def well(self) -> bool:
        """Whether nothing is missing: the coordinator and every worker, replicas too."""
        workers = [worker for device in self.devices for worker in device.workers]
        return self.coordinator.state == "ready" and all(w.state == "ready" for w in workers)


def survey(running: Running, timeout_s: float = DEADLINE_S) -> ClusterStatus:
    """Ask everybody at the same time, each for about timeout_s at most; who is silent is down."""
    reached = [device.known for device in running.devices if device.known is not None]
    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(_ask_coordinator, running, timeout_s)
        agents = {seen.known.name: seen for seen in survey_agents(reached, timeout_s)}
        view, coordinator = asked.result()
    devices = tuple(
        _device(running, device, agents.get(device.name), view) for device in running.devices
    )
    return ClusterStatus(running.plan.digest, coordinator, devices)


def _ask_coordinator(
    running: Running, timeout_s: float
) -> tuple[CoordinatorView | None, CoordinatorStatus]:
    """Its view, where it serves this plan, and how it is."""
    address = running.coordinator.how.address if running.coordinator is not None else None
    try:
        with Caller(running) as caller:
            view = caller.look(timeout_s)
            other = caller.other_plan(view)
    except RuntimeFault as fault:
        return None, CoordinatorStatus(address, "down", str(fault))
    if view.plan_digest != running.plan.digest:
        return None, CoordinatorStatus(address, "down", other, view.plan_digest)
    record = running.plan.record
    usable = {name.partition("@")[0] for name, worker in view.workers.items() if worker.usable}
    missing = tuple(s.name for s in record.submodels if s.name not in usable)
    blind = tuple(record.labels[index] for index in blind_classes(record.submodels, missing))
    state: CoordinatorState = "ready" if not missing else "degraded" if usable else "down"
    reason = "" if usable else "no sub-model can answer now"
    return view, CoordinatorStatus(address, state, reason, view.plan_digest, missing, blind)


def blind_classes(submodels: list[PlannedSubmodel], missing: tuple[str, ...]) -> list[int]:
    """The classes that only missing sub-models know, as indices in ascending order."""
    lost = {c for s in submodels if s.name in missing for c in s.classes}
    known = {c for s in submodels if s.name not in missing for c in s.classes}
    return sorted(lost - known)


def _device(
    running: Running, device: RunningDevice, seen: Seen | None, view: CoordinatorView | None
) -> DeviceStatus:
    told = [
        view.workers[name]
        for submodel in device.submodels
        if view is not None and (name := f"{submodel}@{device.name}") in view.workers
    ]
    workers = tuple(_worker(running, device, submodel, seen, view) for submodel in device.submodels)
    heard = [worker.last_heard_s for worker in told if worker.last_heard_s is not None]
    address = device.known.how.address if device.known is not None else None
    found = seen.device if seen is not None else None
    if found is None:
        note = _unseen(device, seen) if any(w.state == "ready" for w in workers) else ""
        last = min(heard, default=None)
        return DeviceStatus(device.name, address, workers, last_seen_s=last, note=note)
    note = ""
    if device.device_id is not None and found.device_id != device.device_id:
        note = "another device answers at this address than when the cluster was launched"
    return DeviceStatus(
        device.name, address, workers, found.temperature_c, found.memory_available,
        found.memory_agent, 0.0, note,
    )  # fmt: skip


def _worker(
    running: Running,
    device: RunningDevice,
    submodel: str,
    seen: Seen | None,
    view: CoordinatorView | None,
) -> WorkerStatus:
    """As its coordinator sees it; where that cannot be asked, as its agent tells."""
    planned = running.plan.record.submodel(submodel)
    role: Literal["primary", "replica"] = "primary" if planned.primary == device.name else "replica"
    told = view.workers.get(f"{submodel}@{device.name}") if view is not None else None
    p50_ms = told.p50_us / 1e3 if told is not None and told.p50_us is not None else None
    state, reason = _state(planned, device, seen, told)
    return WorkerStatus(submodel, role, state, reason, p50_ms)


def _state(
    planned: PlannedSubmodel, device: RunningDevice, seen: Seen | None, told: WorkerView | None
) -> tuple[WorkerState, str]:
    unreached = seen is None or (seen.device is None and seen.state == "unreachable")
    if told is not None and told.usable:
        return "ready", ""
    if told is not None and (device.known is None or not unreached):
        return "out", told.reason or "its coordinator is asking it whether it lives"
    if unreached or seen is None:
        return "unreachable", _unseen(device, seen)
    return _as_told(planned, seen)


def _as_told(planned: PlannedSubmodel, seen: Seen) -> tuple[WorkerState, str]:
    """What an agent that answers says of a sub-model."""
    if seen.device is None:
        return "out", seen.reason
    models = [m for m in seen.device.models if m.digest == planned.bundle_digest]
    if any(model.state == "READY" for model in models):
        return "ready", ""
    if models:
        return "out", f"{models[0].name} is {models[0].state} {models[0].reason}".rstrip()
    return "out", f"its agent has no model of the bundle {planned.bundle_digest[:12]} loaded"


def _unseen(device: RunningDevice, seen: Seen | None) -> str:
    """Why an agent was not seen by us."""
    return device.why if seen is None else seen.reason

"""Where the cluster of a plan answers: what a launch left, cluster.yaml, what the caller says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from partition.cluster.state import CoordinatorState, DeviceState, read_state
from partition.placing.cluster_file import ClusterDevice, access_to
from partition.plan import Plan, read_plan
from runtime.client.channel import Access
from runtime.devices.file import AddressOptions, KnownDevice
from runtime.errors import CheckFailed, RuntimeFault

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class RunningDevice:
    """A device that the plan uses; submodels are those it serves, as names, replicas included.

    known is how its agent is reached, None where `why` says why that is not known. device_id is of
    the agent that the launch found there.
    """

    name: str
    submodels: tuple[str, ...]
    known: KnownDevice | None
    why: str = ""
    device_id: str | None = None


@dataclass(frozen=True)
class Running:
    """A plan, its coordinator where one is known of, and its devices in the order of the plan."""

    plan: Plan
    coordinator: KnownDevice | None
    devices: tuple[RunningDevice, ...]

    @property
    def launch(self) -> str:
        """The command that mends most of what can be wrong."""
        return f"edgevit cluster launch {self.plan.path}"

    def asked(self) -> KnownDevice:
        """The coordinator. Raises CheckFailed where nobody knows of one."""
        if self.coordinator is None:
            raise CheckFailed(
                f"no coordinator of {self.plan.path} is known here. Start the cluster: "
                f"{self.launch}; or say where it listens: --coordinator HOST:PORT"
            )
        return self.coordinator


def find_running(
    plan_path: Path, coordinator: str | None = None, options: AddressOptions | None = None
) -> Running:
    """The cluster of a plan; `coordinator` (HOST:PORT) comes before the one that was launched.

    options say how the coordinator is reached; agents are reached as the plan's cluster.yaml says.
    Nobody is asked. Raises PartitionError or RuntimeFault for a plan, a state or an address that is
    not right.
    """
    plan = read_plan(plan_path)
    state = read_state(plan_path)
    options = options or AddressOptions()
    launched_one = state.coordinator if state is not None else None
    known = None
    if coordinator is not None:
        known = replace(options.device(coordinator), name=COORDINATOR)
    elif launched_one is not None and launched_one.address is not None:
        known = _launched(launched_one, launched_one.address, options)
    launched = state.devices if state is not None else {}
    served: dict[str, list[str]] = {}
    for submodel in plan.record.submodels:
        for place in (submodel.primary, *submodel.replicas):
            served.setdefault(place, []).append(submodel.name)
    devices = tuple(
        _device(plan, device, tuple(served[device.name]), launched.get(device.name))
        for device in plan.cluster().devices
        if device.name in served
    )
    return Running(plan, known, devices)


def _launched(state: CoordinatorState, address: str, options: AddressOptions) -> KnownDevice:
    """The coordinator that a launch started: what it asks for it was told by files from here."""
    token_file = state.options.get("token_file")
    known = replace(options.device(address), name=COORDINATOR)
    if known.token_file is None and isinstance(token_file, str):
        known = replace(known, token_file=Path(token_file))
    secure = known.how.secure or bool(state.options.get("tls_cert"))
    return replace(known, how=replace(known.how, tls=secure))


def _device(
    plan: Plan, device: ClusterDevice, submodels: tuple[str, ...], state: DeviceState | None
) -> RunningDevice:
    address = (state.address if state is not None else None) or device.address
    own = state.device_id if state is not None else None
    if address is None:
        why = "its address is not known here: no launch started it"
        return RunningDevice(device.name, submodels, None, why, own)
    try:
        access = Access(address)
        if device.address is not None:
            access = replace(access_to(device, plan.path), address=address)
    except RuntimeFault as fault:
        return RunningDevice(device.name, submodels, None, str(fault), own)
    return RunningDevice(device.name, submodels, KnownDevice(device.name, access), "", own)

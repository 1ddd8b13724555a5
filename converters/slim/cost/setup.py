"""On what a latency was measured. Times of two setups are never mixed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from converters.lower.base import TARGETS, check_precision, versions_of
from converters.slim.errors import SlimError
from runtime.client import Device
from runtime.environment import describe, edgevit_version
from runtime.run_record import Environment
from runtime.sessions.base import ENGINES
from runtime.sessions.installed import find_engine


@dataclass(frozen=True)
class Machine:
    """A device as its system describes it, and where an agent speaks for it, which one.

    What changes by itself (clock, load, temperature) is no part of it; None is what it does not
    tell.
    """

    device: str
    hostname: str
    machine: str
    cpu_model: str | None = None
    cores_physical: int | None = None
    cores_logical: int | None = None
    cpu_flags: tuple[str, ...] = ()
    governor: str | None = None
    agent_id: str | None = None
    agent_edgevit: str | None = None

    def __str__(self) -> str:
        cores = f", {self.cores_logical} cores" if self.cores_logical else ""
        governor = f", governor {self.governor}" if self.governor else ""
        agent = f", agent {self.agent_id[:8]}" if self.agent_id else ""
        return f"{self.hostname} ({self.cpu_model or self.device}{cores}{governor}{agent})"


@dataclass(frozen=True)
class Setup:
    """Everything that a latency depends on besides the network: the key of a table's entries.

    tools are the versions of the converter's packages, since another version may write another
    graph.
    """

    target: str
    engine: str
    engine_version: str
    edgevit_version: str
    machine: Machine
    threads: int
    precision: str
    tools: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """One text for one setup; equal setups have equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Read to_json's text. Raises KeyError, TypeError or ValueError for another text."""
        data: dict[str, Any] = json.loads(text)
        machine = dict(data.pop("machine"))
        machine["cpu_flags"] = tuple(machine["cpu_flags"])
        tools = tuple((str(name), str(version)) for name, version in data.pop("tools"))
        return cls(machine=Machine(**machine), tools=tools, **data)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{self.engine} {self.engine_version} ({self.target} {self.precision}, {threads}) on "
            f"{self.machine}, edgevit {self.edgevit_version}"
        )

    def check(self, engine_version: str, here: Environment) -> None:
        """Raise SlimError where what measured is no longer what this setup says."""
        machine = machine_of(
            here, agent_id=self.machine.agent_id, agent_edgevit=self.machine.agent_edgevit
        )
        changed = self.differences(replace(self, engine_version=engine_version, machine=machine))
        if changed:
            raise SlimError(
                f"the setup changed while it was measured ({'; '.join(changed)}); what was "
                "measured before is kept, start again for the new one"
            )

    def differences(self, other: Setup) -> list[str]:
        """What differs, as 'name: ours, theirs'."""
        ours, theirs = _flat(asdict(self)), _flat(asdict(other))
        return [
            f"{name}: {ours.get(name)}, {theirs.get(name)}"
            for name in ours | theirs
            if ours.get(name) != theirs.get(name)
        ]


def local_setup(target: str, precision: str | None, threads: int) -> Setup:
    """The setup of this machine. Raises SlimError where the target's engine is not here."""
    precision = _checked(target, precision, threads)
    name = TARGETS[target].engine
    found = find_engine(next(engine for engine in ENGINES if engine.name == name))
    if found.missing is not None:
        raise SlimError(f"{name} cannot run here, so no latency can be measured: {found.missing}")
    return _setup(target, precision, threads, found.version, machine_of(describe()))


def device_setup(target: str, precision: str | None, threads: int, device: Device) -> Setup:
    """The setup of a device as its agent describes it. Raises SlimError without the engine."""
    precision = _checked(target, precision, threads)
    name = TARGETS[target].engine
    engine = next((each for each in device.engines if each.name == name), None)
    if engine is None or not engine.available:
        why = engine.reason if engine is not None else "its agent knows no such engine"
        raise SlimError(f"{name} cannot run on the device '{device.name}': {why}")
    machine = machine_of(
        device.environment, agent_id=device.device_id, agent_edgevit=device.edgevit_version
    )
    return _setup(target, precision, threads, engine.version, machine)


def _checked(target: str, precision: str | None, threads: int) -> str:
    if target not in TARGETS:
        raise SlimError(f"unknown target '{target}', expected one of: {', '.join(TARGETS)}")
    if threads < 1:
        raise SlimError(f"expected at least one thread, got {threads}")
    return check_precision(target, precision)


def _setup(target: str, precision: str, threads: int, version: str, machine: Machine) -> Setup:
    row = TARGETS[target]
    tools = tuple(sorted(versions_of(row.packages).items()))
    return Setup(target, row.engine, version, edgevit_version(), machine, threads, precision, tools)


def machine_of(here: Environment, **agent: str | None) -> Machine:
    """The device that a description is of; `agent` is agent_id and agent_edgevit."""
    return Machine(
        device=here.device,
        hostname=here.hostname,
        machine=here.machine,
        cpu_model=here.cpu_model,
        cores_physical=here.cores_physical,
        cores_logical=here.cores_logical,
        cpu_flags=tuple(here.cpu_flags),
        governor=here.governor,
        **agent,
    )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in _flat(value).items()}
        else:
            flat[name] = value
    return flat

"""Whole fleets: devices of one kind, or those of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from partition.errors import PartitionError
from partition.simulation.fleet import Caller, Device, Fleet, Hub, Link, Submodel, Times
from runtime.bundle import read_bundle

if TYPE_CHECKING:  # it comes with gRPC, which a simulation has no use for
    from partition.plan import Plan


@dataclass(frozen=True)
class Overheads:
    """What a call costs beside compute and network: seconds, and bytes of framing on the wire.

    caller_s is the caller's; accept_s, decode_s, send_s, receive_s and fuse_s the coordinator's
    (Hub); call_s and transport_s an agent's (Device). request_bytes and answer_bytes are what a
    call's messages have beside their tensors, name_bytes a request that only names a local input.
    Zeros are an ideal cluster; docs/results/edvit-simulation.md has measured ones.
    """

    caller_s: float = 0.0
    accept_s: float = 0.0
    decode_s: float = 0.0
    send_s: float = 0.0
    receive_s: float = 0.0
    fuse_s: float = 0.0
    call_s: float = 0.0
    transport_s: float = 0.0
    request_bytes: float = 0.0
    answer_bytes: float = 0.0
    name_bytes: float = 1.0

    def hub(self, link: Link, patience_s: float = 5.0) -> Hub:
        """A coordinator with these."""
        return Hub(link, self.accept_s, self.decode_s, self.send_s, self.receive_s, self.fuse_s,
                   patience_s=patience_s)  # fmt: skip

    def caller(self, picture_bytes: float, answer_bytes: float, link: Link | None) -> Caller:
        """A caller with these; sizes are of the tensors."""
        sizes = picture_bytes + self.request_bytes, answer_bytes + self.answer_bytes
        return Caller(*sizes, link, self.caller_s)

    def submodel(
        self, name: str, places: tuple[str, ...], picture_bytes: float, answer_bytes: float
    ) -> Submodel:
        """A sub-model with these; sizes are of the tensors."""
        sizes = picture_bytes + self.request_bytes, answer_bytes + self.answer_bytes
        return Submodel(name, places, *sizes)


def alike(
    count: int,
    compute_s: Times,
    *,
    picture_bytes: float,
    answer_bytes: float,
    link: Link,
    shared_uplink: bool = True,
    local_input: bool = False,
    overheads: Overheads | None = None,
    patience_s: float = 60.0,
) -> Fleet:
    """`count` devices of one kind with one sub-model each, the caller beside the coordinator.

    Sizes are of the tensors in bytes. With a shared uplink the coordinator has such a link as well,
    and all pictures go through it; else it stands at a switch. Raises PartitionError.
    """
    if count < 1:
        raise PartitionError(f"expected at least 1 device, got {count}")
    made = overheads or Overheads()
    fleet = Fleet(
        devices=tuple(
            Device(f"device-{i}", {f"sub{i}": compute_s}, link, made.call_s, made.transport_s)
            for i in range(count)
        ),
        submodels=tuple(
            made.submodel(f"sub{i}", (f"device-{i}",), picture_bytes, answer_bytes)
            for i in range(count)
        ),
        hub=made.hub(link if shared_uplink else Link(), patience_s),
        caller=made.caller(picture_bytes, answer_bytes, None),
    )
    return fleet.with_local_input(made.name_bytes, made.name_bytes) if local_input else fleet


def fleet_of(
    plan: Plan,
    *,
    compute_s: Mapping[tuple[str, str], Times] | None = None,
    links: Mapping[str, Link] | None = None,
    hub_link: Link | None = None,
    local_input: bool = False,
    overheads: Overheads | None = None,
    patience_s: float = 5.0,
) -> Fleet:
    """The fleet that a plan describes, the caller beside the coordinator.

    Times are by (sub-model, device), else its MACs over the device's MAC/s as the plan has them;
    links by device, else what cluster.yaml says of their speed. hub_link is the coordinator's, left
    out for one at a switch. Raises PartitionError, and RuntimeFault where a bundle cannot be read.
    """
    record, made = plan.record, overheads or Overheads()
    times, links = compute_s or {}, links or {}
    speeds = {device.name: device.link for device in plan.cluster().devices}
    macs_per_s = {device.name: device.macs_per_s for device in record.devices}
    named = {(s.name, place) for s in record.submodels for place in (s.primary, *s.replicas)}
    unknown = (times.keys() - named) | {("", name) for name in links.keys() - macs_per_s.keys()}
    if unknown:
        submodel, place = min(unknown)
        said = f"{submodel} on {place}" if submodel else f"the device '{place}'"
        raise PartitionError(f"the plan does not know {said}")
    targets = {device.name: device.target for device in record.devices}
    first = record.submodels[0]
    artifacts = read_bundle(plan.bundle(first)).manifest.artifacts
    spec = artifacts[targets[first.primary]].input
    picture = np.dtype(spec.dtype).itemsize * math.prod(spec.shape[1:])
    submodels = tuple(
        made.submodel(s.name, (s.primary, *s.replicas), picture, 4 * s.answer_values)
        for s in record.submodels
    )
    macs = {s.name: s.macs for s in record.submodels}
    devices = tuple(
        Device(
            name,
            {
                s.name: times.get((s.name, name), macs[s.name] / macs_per_s[name])
                for s in submodels
                if name in s.places
            },
            links.get(name, Link(speeds.get(name))),
            made.call_s,
            made.transport_s,
        )
        for name in macs_per_s
    )
    fleet = Fleet(
        devices=devices,
        submodels=submodels,
        hub=made.hub(hub_link or Link(), patience_s),
        caller=made.caller(picture, 4 * len(record.labels), None),
    )
    return fleet.with_local_input(made.name_bytes, made.name_bytes) if local_input else fleet

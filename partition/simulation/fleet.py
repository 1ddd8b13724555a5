"""What a simulated cluster is made of. All of it is measured or given, nothing is guessed.

Times are seconds, sizes bytes, speeds bit/s, arithmetic MAC/s.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from partition.errors import PartitionError

Times = float | Sequence[float]
"""One time for all, or measured samples of which each call takes one at random."""


def _check(what: str, value: float, expected: str, above: bool = False) -> None:
    good = math.isfinite(value) and (value > 0 if above else value >= 0)
    if not good:
        raise PartitionError(f"{what}: expected {expected}, got {value}")


@dataclass(frozen=True)
class Link:
    """The cable or radio of one machine; both directions have this speed, each for itself.

    rate is bit/s, None where it does not limit. delay_s is added on the way through it, one way.
    What travels is counted with header_bytes for each segment_bytes begun (0: the sizes hold
    already all that is charged); burst_bytes pass at once after a pause, as a token bucket (tbf)
    lets them.
    """

    rate: float | None = None
    delay_s: float = 0.0
    burst_bytes: int = 0
    header_bytes: int = 0
    segment_bytes: int = 1448

    def __post_init__(self) -> None:
        if self.rate is not None:
            _check("a link's rate", self.rate, "bit/s, or None for no limit", above=True)
        for name in ("delay_s", "burst_bytes", "header_bytes"):
            _check(f"a link's {name}", getattr(self, name), "0 or more")
        _check("a link's segment_bytes", self.segment_bytes, "a number of bytes", above=True)

    def charged(self, size: float) -> float:
        """Bytes that are charged for `size` bytes of a connection."""
        return size + self.header_bytes * math.ceil(size / self.segment_bytes)


@dataclass(frozen=True)
class Device:
    """A machine with an agent. compute_s is the engine's run of each sub-model that it has.

    call_s is the agent's own part of a call as it tells it, transport_s the rest of what a call
    costs there: taking and giving the messages. cores is how many calls it works at side by side.
    """

    name: str
    compute_s: Mapping[str, Times]
    link: Link = Link()
    call_s: float = 0.0
    transport_s: float = 0.0
    cores: int = 1

    def __post_init__(self) -> None:
        for submodel, times in self.compute_s.items():
            for time in samples(times):
                _check(f"{self.name}: compute_s of {submodel}", time, "seconds")
            if not samples(times):
                raise PartitionError(f"{self.name}: expected a time of {submodel}, got no samples")
        for name in ("call_s", "transport_s"):
            _check(f"{self.name}: {name}", getattr(self, name), "seconds")
        _check(f"{self.name}: cores", self.cores, "1 or more", above=True)


@dataclass(frozen=True)
class Submodel:
    """places are names of devices in the order in which they are asked: the first, then replicas.

    request_bytes and answer_bytes are of one call as they go over the wire, framing and all.
    """

    name: str
    places: tuple[str, ...]
    request_bytes: float
    answer_bytes: float

    def __post_init__(self) -> None:
        if not self.places:
            raise PartitionError(f"{self.name}: expected a device it is placed on, got none")
        for name in ("request_bytes", "answer_bytes"):
            _check(f"{self.name}: {name}", getattr(self, name), "bytes", above=True)


@dataclass(frozen=True)
class Hub:
    """The coordinator: one process that does one thing at a time, and its link.

    With a link as slow as the devices' it is one uplink that all pictures share; with an unlimited
    one it stands at a switch, and only the devices' own links count. accept_s (gRPC's work for it
    before it is asked), decode_s and fuse_s are for a request, send_s and receive_s for each
    sub-model of it. under_way requests are worked at, `waiting` more may wait, and a sub-model is
    waited for patience_s.
    """

    link: Link = Link()
    accept_s: float = 0.0
    decode_s: float = 0.0
    send_s: float = 0.0
    receive_s: float = 0.0
    fuse_s: float = 0.0
    under_way: int = 32
    waiting: int = 256
    patience_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("accept_s", "decode_s", "send_s", "receive_s", "fuse_s"):
            _check(f"the coordinator's {name}", getattr(self, name), "seconds")
        for name in ("under_way", "patience_s"):
            _check(f"the coordinator's {name}", getattr(self, name), "above 0", above=True)


@dataclass(frozen=True)
class Caller:
    """Who asks: sizes of its call in bytes, call_s of its own and gRPC's work for it.

    Without a link it runs on the coordinator's machine.
    """

    request_bytes: float
    answer_bytes: float
    link: Link | None = None
    call_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("request_bytes", "answer_bytes"):
            _check(f"the caller's {name}", getattr(self, name), "bytes", above=True)
        _check("the caller's call_s", self.call_s, "seconds")


@dataclass(frozen=True)
class Fleet:
    """A whole cluster. shared_cores is for one that runs on a single machine with so many cores.

    Raises PartitionError where a sub-model is on a device that is not there or has no time for it.
    """

    devices: tuple[Device, ...]
    submodels: tuple[Submodel, ...]
    hub: Hub
    caller: Caller
    shared_cores: int | None = None
    _by_name: dict[str, Device] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, names in (
            ("device", [device.name for device in self.devices]),
            ("sub-model", [submodel.name for submodel in self.submodels]),
        ):
            if not names or len(set(names)) < len(names):
                raise PartitionError(f"expected {what}s of different names, got {names or 'none'}")
        object.__setattr__(self, "_by_name", {device.name: device for device in self.devices})
        for submodel in self.submodels:
            for place in submodel.places:
                if place not in self._by_name:
                    raise PartitionError(
                        f"{submodel.name} is placed on '{place}', which is not a device; there "
                        f"are: {', '.join(self._by_name)}"
                    )
                if submodel.name not in self._by_name[place].compute_s:
                    raise PartitionError(
                        f"{place} has no compute_s for {submodel.name}, which is placed there"
                    )
        if self.shared_cores is not None:
            _check("shared_cores", self.shared_cores, "1 or more", above=True)

    def with_local_input(self, worker_bytes: float, caller_bytes: float) -> Fleet:
        """The same in local-input mode: calls carry the name of an input, of so many bytes."""
        named = tuple(replace(each, request_bytes=worker_bytes) for each in self.submodels)
        caller = replace(self.caller, request_bytes=caller_bytes)
        return replace(self, submodels=named, caller=caller)

    def device(self, name: str) -> Device:
        """The device of that name. Raises PartitionError."""
        if name not in self._by_name:
            raise PartitionError(f"no device '{name}'; there are: {', '.join(self._by_name)}")
        return self._by_name[name]

    def missing(self, lost: Collection[str]) -> tuple[str, ...]:
        """Sub-models of which every place is lost, by name. Raises PartitionError."""
        gone = {self.device(name).name for name in lost}
        return tuple(s.name for s in self.submodels if gone.issuperset(s.places))


def samples(times: Times) -> tuple[float, ...]:
    """The samples of a time; one number is one sample."""
    return (float(times),) if isinstance(times, int | float) else tuple(times)

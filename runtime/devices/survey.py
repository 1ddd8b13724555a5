"""Ask several agents at once how they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import grpc

from runtime.client import AgentFault, AsyncAgentClient, Device
from runtime.devices.file import KnownDevice
from runtime.errors import RuntimeFault

State = Literal["ready", "live", "unreachable"]
_NOT_REACHED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED})


@dataclass(frozen=True)
class Seen:
    """A device and what it answered. `live` runs but takes no requests now.

    `reason` says in full why something is missing, `short` in a few words. clock_difference_s is
    the device's clock less ours, taken to have been read half way through a call of round_trip_s.
    """

    known: KnownDevice
    state: State
    device: Device | None = None
    reason: str = ""
    short: str = ""
    round_trip_s: float | None = None
    clock_difference_s: float | None = None


def survey(devices: Sequence[KnownDevice], timeout_s: float) -> list[Seen]:
    """Ask all at the same time, each for timeout_s at most; the answers in the order given."""

    async def all_of_them() -> list[Seen]:
        return await asyncio.gather(*(_ask(device, timeout_s) for device in devices))

    return asyncio.run(all_of_them())


async def _ask(known: KnownDevice, timeout_s: float) -> Seen:
    end = time.monotonic() + timeout_s
    state: State = "unreachable"
    try:
        async with AsyncAgentClient(known.access()) as agent:
            state = "ready" if await agent.ready(timeout_s=timeout_s) else "live"
            started, clock = time.monotonic(), time.time()
            device = await agent.describe(timeout_s=max(0.1, end - started))
            taken = time.monotonic() - started
    except AgentFault as fault:
        found: State = "unreachable" if fault.code in _NOT_REACHED else state
        return Seen(known, found, None, str(fault), fault.short)
    except RuntimeFault as fault:
        short = "cannot be asked" if state == "unreachable" else "cannot be read"
        return Seen(known, state, None, str(fault), short)
    difference = device.clock_unix_ns / 1e9 - (clock + taken / 2)
    return Seen(known, state, device, "", "", taken, difference)

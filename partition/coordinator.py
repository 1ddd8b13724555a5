"""The coordinator of a plan: an Open Inference Protocol server for the whole model.

It holds no state but its connections, so that two may serve one plan. Every worker may go at any
time; what is left answers, and says what it does not see.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from partition.plan import read_plan
from partition.serving.device_link import DeviceLink
from partition.serving.ensemble import Ensemble, ensemble_of
from partition.serving.fanout import FanOut
from partition.serving.fuse import FusedModel
from partition.serving.heap import keep_freed_memory
from partition.serving.metrics import CoordinatorMetrics, CoordinatorWatcher, Uncounted
from partition.serving.service import CoordinatorService
from partition.serving.turns import Turns
from runtime.client.channel import Access
from runtime.errors import RuntimeFault
from runtime.serving.addresses import Address
from runtime.serving.ending import Grace, first_of
from runtime.serving.front import FrontConfig, drain, guarded, run_until_a_signal
from runtime.serving.grpc_server import bind, make_server
from runtime.serving.limits import Limits
from runtime.serving.metrics_server import MetricsServer
from runtime.serving.services.health import Health
from runtime.serving.services.reflection import Reflection
from runtime.wire.descriptors import HEALTH, INFERENCE, REFLECTION, REFLECTION_ALPHA
from runtime.wire.service import handler

log = logging.getLogger(__name__)

SERVICES = (INFERENCE, HEALTH, REFLECTION, REFLECTION_ALPHA)
FIRST_LOOK_S = 5.0  # for the devices to be reached before the coordinator says that it is ready


@dataclass(frozen=True)
class CoordinatorConfig(FrontConfig):
    """What a coordinator can be told. devices says where agents listen, by their names in the plan,
    and takes the place of what its cluster.yaml says.

    worker_timeout_s is how long a worker may take before its sub-model is left out; a request's own
    deadline makes it shorter.
    """

    plan: Path
    devices: Mapping[str, Access] = field(default_factory=dict)
    name: str | None = None
    worker_timeout_s: float = 5.0


@dataclass(frozen=True)
class Coordinating:
    """A coordinator that takes calls. The addresses hold the ports that the system gave."""

    address: Address
    metrics: Address | None
    ensemble: Ensemble
    fan_out: FanOut

    def facts(self) -> dict[str, Any]:
        """What a script wants to know of it, for JSON."""
        return {
            "address": str(self.address),
            "metrics": str(self.metrics) if self.metrics else None,
            "model": self.ensemble.name,
            "version": self.ensemble.version,
            "plan_digest": self.ensemble.digest,
            "workers": {
                worker.name: {"usable": usable, "reason": worker.reason}
                for worker, usable in self.fan_out.states()
            },
            "pid": os.getpid(),
        }


Ready = Callable[[Coordinating], None]


def run(config: CoordinatorConfig, ready: Ready | None = None) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain; the exit code. Logs go to stderr.

    A second signal ends the process at once. Raises RuntimeFault, CheckFailed or PartitionError
    where the coordinator cannot start.
    """
    if not 0 < config.worker_timeout_s < math.inf:
        raise RuntimeFault(
            f"expected a --worker-timeout above 0 seconds, got {config.worker_timeout_s}"
        )
    keep_freed_memory()
    run_until_a_signal(config, lambda stop: serve(config, ready, stop))
    return 0


async def serve(
    config: CoordinatorConfig, ready: Ready | None = None, stop: asyncio.Event | None = None
) -> None:
    """Serve until `stop` is set, then drain. `ready` is called once every device was looked for.

    Devices need not be there. Raises RuntimeFault, CheckFailed or PartitionError where the plan, an
    address or a TLS file is not right.
    """
    stop = stop or asyncio.Event()
    address, metrics_address, security = guarded(config)
    ensemble = ensemble_of(read_plan(config.plan), config.devices, config.name)
    limits = Limits(message_bytes=config.message_bytes, concurrent_calls=config.concurrent_calls)
    grace = Grace(config.grace_s)
    async with AsyncExitStack() as stack:
        metrics = _metrics(ensemble) if metrics_address is not None else None
        watcher: CoordinatorWatcher = metrics or Uncounted()
        health = Health()
        devices = {
            name: DeviceLink(
                site, [m for m in ensemble.members if name in m.places], config.worker_timeout_s
            )
            for name, site in ensemble.sites.items()
        }
        fan_out = FanOut(ensemble, devices, watcher)
        fused = FusedModel(ensemble, fan_out, config.worker_timeout_s)
        turns = Turns(fused.run, ensemble.most, config.worker_timeout_s)
        sensed = Turns(fused.run, 1, config.worker_timeout_s)
        services: dict[str, object] = {
            INFERENCE: CoordinatorService(
                ensemble, turns, sensed, fan_out.states, fan_out.any_usable, watcher
            ),
            HEALTH: health,
            REFLECTION: Reflection(REFLECTION, SERVICES),
            REFLECTION_ALPHA: Reflection(REFLECTION_ALPHA, SERVICES),
        }
        for service in (HEALTH, REFLECTION, REFLECTION_ALPHA):
            health.set(service, True)
        tell = partial(_tell_health, health, ensemble, fan_out)
        tell()
        server = make_server(limits, security)
        server.add_generic_rpc_handlers([handler(each, services[each]) for each in SERVICES])
        address = bind(server, address, security)
        for device in devices.values():
            device.subscribe(tell)
            device.start()
            stack.push_async_callback(device.close)
        stack.push_async_callback(turns.close)
        stack.push_async_callback(sensed.close)
        if metrics is not None and metrics_address is not None:
            metrics.watch(fan_out.states, lambda: len(turns) + len(sensed))
            metrics_server = MetricsServer(metrics_address, metrics.registry, security)
            stack.callback(metrics_server.close)
            metrics_address = metrics_server.address
        await server.start()
        stack.push_async_callback(lambda: drain(server, health, grace))
        log.info("listening", extra={"address": str(address), "plan": ensemble.digest})
        await _first_look(devices.values(), stop)
        if ready is not None and not stop.is_set():
            ready(Coordinating(address, metrics_address, ensemble, fan_out))
        await stop.wait()


async def _first_look(devices: Iterable[DeviceLink], stop: asyncio.Event) -> None:
    """Until every device was looked for, FIRST_LOOK_S at most."""

    async def all_tried() -> None:
        for device in devices:
            await device.tried.wait()

    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_LOOK_S):
            await first_of(asyncio.create_task(all_tried()), stop)


def _metrics(ensemble: Ensemble) -> CoordinatorMetrics:
    return CoordinatorMetrics(ensemble.name, ensemble.digest)


def _tell_health(health: Health, ensemble: Ensemble, fan_out: FanOut) -> None:
    """Serving while there would be an answer, degraded or not."""
    serving = fan_out.any_usable()
    for name in ("", INFERENCE, ensemble.name):
        health.set(name, serving)

"""The agent of a device: every part put together, from the first check to the last drain."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import read_bundle
from runtime.errors import RuntimeFault
from runtime.manifest import MANIFEST_NAME
from runtime.serving.addresses import Address
from runtime.serving.ending import Grace, first_of
from runtime.serving.front import FrontConfig, drain, guarded, run_until_a_signal
from runtime.serving.grpc_server import bind, make_server
from runtime.serving.heap import one_arena
from runtime.serving.inputs_folder import InputsFolder
from runtime.serving.limits import Limits
from runtime.serving.model import ModelSettings
from runtime.serving.models import Models
from runtime.serving.observer import NOBODY, Observer
from runtime.serving.security import Security
from runtime.serving.services.device import DeviceService
from runtime.serving.services.health import Health
from runtime.serving.services.inference import InferenceService
from runtime.serving.services.reflection import Reflection
from runtime.serving.storage.names import default_name
from runtime.serving.storage.store import Store
from runtime.wire.descriptors import (
    DEVICE,
    HEALTH,
    INFERENCE,
    REFLECTION,
    REFLECTION_ALPHA,
    SERVICES,
)
from runtime.wire.service import handler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgentConfig(FrontConfig):
    """What `edgevit agent` can be told; the defaults are its own.

    load names bundle folders, or NAME or NAME/TARGET of the store. inputs is the folder of what
    this device senses, for requests that carry no input. quota is bytes.
    """

    store: Path
    load: tuple[str, ...] = ()
    name: str | None = None
    threads: int = 1
    instances: int = 1
    queue: int = 64
    isolate: bool = True
    quota: int | None = None
    inputs: Path | None = None


@dataclass(frozen=True)
class Running:
    """An agent that takes calls. The addresses hold the ports that the system gave."""

    address: Address
    metrics: Address | None
    name: str
    store: Store
    models: Models

    def facts(self) -> dict[str, Any]:
        """What a script wants to know of it, for JSON."""
        return {
            "address": str(self.address),
            "metrics": str(self.metrics) if self.metrics else None,
            "name": self.name,
            "device_id": self.store.device_id,
            "store": str(self.store.root),
            "models": [
                {"name": m.name, "version": m.version, "target": m.target}
                for m in self.models.loaded()
            ],
            "pid": os.getpid(),
        }


Ready = Callable[[Running], None]


def run(config: AgentConfig, ready: Ready | None = None) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain; the exit code. Logs go to stderr.

    Nothing but this belongs into the process. Raises RuntimeFault where the agent cannot start.
    """
    one_arena()
    run_until_a_signal(config, lambda stop: serve(config, ready, stop))
    return 0


async def serve(
    config: AgentConfig, ready: Ready | None = None, stop: asyncio.Event | None = None
) -> None:
    """Serve until `stop` is set, then drain. `ready` is called once every model of `load` is ready.

    Raises RuntimeFault where the configuration, the store or a model of `load` is not right.
    """
    stop = stop or asyncio.Event()
    address, metrics_address, security = guarded(config)
    limits = Limits(
        message_bytes=config.message_bytes,
        concurrent_calls=config.concurrent_calls,
        store_bytes=config.quota,
    )
    grace = Grace(config.grace_s)
    async with AsyncExitStack() as stack:
        store = Store.open(config.store, config.quota, limits)
        stack.callback(store.close)
        name = config.name or socket.gethostname()
        metrics = _metrics(name, store) if metrics_address else None
        observer: Observer = metrics or NOBODY
        settings = ModelSettings(
            threads=config.threads, instances=config.instances, queue=config.queue,
            isolate=config.isolate,
        )  # fmt: skip
        models = Models(store, settings, observer)
        inputs = InputsFolder(config.inputs) if config.inputs is not None else None
        if inputs is not None:
            stack.callback(inputs.close)
        wanted = [_checked_load(entry, store) for entry in config.load]
        health = Health()
        server = make_server(limits, security)
        inference = InferenceService(models, observer, health.serving, inputs)
        services: dict[str, object] = {
            INFERENCE: inference,
            DEVICE: DeviceService(
                store, models, limits, name,
                served=lambda: inference.answered,
                uploaded=metrics.upload if metrics is not None else _unseen,
            ),
            HEALTH: health,
            REFLECTION: Reflection(REFLECTION, SERVICES),
            REFLECTION_ALPHA: Reflection(REFLECTION_ALPHA, SERVICES),
        }  # fmt: skip
        server.add_generic_rpc_handlers([handler(each, services[each]) for each in SERVICES])
        address = bind(server, address, security)
        stack.push_async_callback(lambda: models.close(grace.left()))
        if metrics is not None and metrics_address is not None:
            metrics_address = _serve_metrics(metrics, metrics_address, security, models, stack)
        _tell_health(health, models)
        await server.start()
        stack.push_async_callback(lambda: drain(server, health, grace))
        stack.callback(inference.drain)
        log.info("listening", extra={"address": str(address), "tls": security.tls})
        loading = asyncio.create_task(_load(wanted, store, models, config))
        await first_of(loading, stop)
        if not stop.is_set():
            loading.result()
            for service in ("", INFERENCE):
                health.set(service, True)
            log.info("ready", extra={"models": [model.name for model in models.loaded()]})
            if ready is not None:
                ready(Running(address, metrics_address, name, store, models))
            await stop.wait()


def _metrics(name: str, store: Store) -> Any:
    from runtime.serving.metrics import Metrics  # prometheus_client only where it is asked for

    return Metrics(name, store.device_id)


def _serve_metrics(
    metrics: Any, address: Address, security: Security, models: Models, stack: AsyncExitStack
) -> Address:
    from runtime.serving.metrics_server import MetricsServer

    metrics.watch(models.loaded)
    server = MetricsServer(address, metrics.registry, security)
    stack.callback(server.close)
    return server.address


def _checked_load(entry: str, store: Store) -> str | Path:
    """A bundle folder, or the name of a model in the store. Raises RuntimeFault for neither."""
    if (Path(entry) / MANIFEST_NAME).is_file():
        return read_bundle(Path(entry)).path
    try:
        store.find(entry.partition("/")[0])
    except RuntimeFault as error:
        if Path(entry).exists():
            return read_bundle(Path(entry)).path  # which says what it lacks
        raise RuntimeFault(f"--load {entry}: no such folder, and {error}") from error
    return entry


async def _load(
    wanted: list[str | Path], store: Store, models: Models, config: AgentConfig
) -> None:
    """What was loaded before this start, as it was; then what this one asks for, as it says."""
    names = [entry if isinstance(entry, str) else _name_of(entry) for entry in wanted]
    await models.restore(but=names)
    for entry, name in zip(wanted, names, strict=True):
        if isinstance(entry, Path):
            await asyncio.to_thread(store.add, entry, name)
        await models.load(name, threads=config.threads, instances=config.instances)


def _name_of(path: Path) -> str:
    """The name under which a local bundle goes into the store."""
    return default_name(read_bundle(path).manifest.model.ref)


def _tell_health(health: Health, models: Models) -> None:
    """The server is not ready yet; its other services are; models tell of themselves."""
    for service in SERVICES:
        health.set(service, service != INFERENCE)
    health.set("", False)
    models.subscribe(health.set)


def _unseen(status: str) -> None:
    """How an upload ended, where nobody counts."""

"""What an agent tells of its device: hardware, engines, memory, disk, bundles."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable

import psutil

from runtime.environment import describe, edgevit_version
from runtime.serving.limits import Limits
from runtime.serving.memory import memory_of
from runtime.serving.storage.store import Store
from runtime.sessions.installed import installed
from runtime.wire.descriptors import DEVICE, Message, methods


def describe_device(
    store: Store, limits: Limits, name: str, uptime_s: float, pids: Iterable[int]
) -> Message:
    """A DescribeResponse without its models; reads many files, imports no engine.

    `name` is what the device's owner calls it, `pids` are the agent and its engine processes.
    """
    environment, memory = describe(), psutil.virtual_memory()
    environment.name = name or None
    response = methods(DEVICE)["Describe"].response(
        edgevit_version=edgevit_version(),
        device_id=store.device_id,
        generation=store.generation,
        name=name,
        clock_unix_ns=time.time_ns(),
        uptime_s=uptime_s,
        environment_json=environment.model_dump_json(exclude_none=True),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_agent=memory_of(pids),
        disk_free=shutil.disk_usage(store.root).free,
        store_used=store.used(),
        temperature_c=environment.temperature_c,
        limits={
            "message_bytes": limits.message_bytes,
            "bundle_bytes": limits.bundle_bytes,
            "store_bytes": limits.store_bytes or 0,
            "concurrent_calls": limits.concurrent_calls,
            "bundle_files": limits.bundle_files,
            "chunk_bytes": limits.chunk_bytes,
        },
    )
    for found in installed():
        response.engines.add(
            name=found.engine.name, target=found.engine.target, package=found.package,
            version=found.version, available=found.missing is None, reason=found.missing or "",
        )  # fmt: skip
    for stored in store.bundles():
        manifest = stored.bundle.manifest
        response.bundles.add(
            digest=stored.digest, names=stored.names, size=stored.size, model=manifest.model.ref,
            targets=sorted(manifest.artifacts),
        )  # fmt: skip
    return response

"""How fast a device is, measured: a probe is profiled on it, by its agent or right here.

The probe is a slice of the model itself, of about the size that its sub-models will have, so that
its speed in MAC/s is theirs. Latency on a CPU follows MACs closely (edvit.md, 1.6).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partition.errors import PartitionError
from partition.making.original import load_original
from partition.making.steps import Tell
from partition.placing.cluster_file import ClusterDevice, access_to
from runtime.errors import RuntimeFault
from runtime.run_record import RunRecord

if TYPE_CHECKING:
    from runtime.client import AgentClient

PROBE = "probe"
MEASURED = "measured.json"
RUNS = 40
MIN_TIME_S, MAX_TIME_S = 0.5, 20.0
UPLOAD_NAME = "edgevit-partition-probe"


def make_probe(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Slice the original down to `heads` of its heads and convert that to `targets`."""
    from partition.cutting.geometry import Keep, geometry_of, resolved
    from partition.cutting.slicing import Kept, slice_vit
    from partition.making.bundles import convert_module

    original = load_original(inputs["original"])
    whole = geometry_of(original.model)
    heads, residual, ffn = resolved(whole, Keep(settings["heads"]))
    kept = Kept(
        tuple(range(residual)),
        (tuple(range(heads)),) * whole.depth,
        (tuple(range(ffn)),) * whole.depth,
    )
    small = slice_vit(original.model, kept)
    convert_module(
        small, original.about, out / PROBE,
        ref=f"{original.about.ref}, {heads} of {whole.heads} heads",
        notes=("a probe for the speed of a device, not a trained model",),
        answers=whole.classes, targets=settings["targets"], jobs=settings["jobs"], tell=tell,
    )  # fmt: skip
    (out / "macs.json").write_text(json.dumps({"macs": geometry_of(small).macs}))


def measure(settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Profile the probe on one device, and write how many MACs it does in a second.

    Raises PartitionError where the device cannot be reached or cannot run the target.
    """
    device = ClusterDevice.model_validate(settings["device"])
    bundle = inputs["probe"] / PROBE
    macs = json.loads((inputs["probe"] / "macs.json").read_text())["macs"]
    run = (
        _here(device, bundle, tell)
        if device.is_local
        else _there(device, Path(settings["folder"]), bundle, tell)
    )
    if not run.measurements:
        why = run.not_measured[0].reason if run.not_measured else "the agent gave no measurement"
        raise PartitionError(
            f"device '{device.name}' could not be measured on {device.target}: {why}. Choose "
            "another target for it, or give its compute in the cluster file"
        )
    found = run.measurements[0]
    value = {
        "macs_per_s": macs / (found.latency.p50 / 1e3),
        "probe_macs": macs,
        "probe_p50_ms": found.latency.p50,
        "engine": f"{found.engine} {found.engine_version}",
        "threads": found.threads,
        "device": run.environment.device,
        "notes": run.notes,
    }
    (out / MEASURED).write_text(json.dumps(value, indent=1))


def check_reach(device: ClusterDevice, folder: Path) -> None:
    """Ask a device's agent who it is, before anything is made for it. Raises PartitionError."""
    with _reached(device, folder) as agent:
        engines = {engine.target: engine for engine in agent.describe().engines}
    engine = engines.get(device.target)
    if engine is not None and not engine.available:
        raise PartitionError(
            f"device '{device.name}' cannot run {device.target}: {engine.reason}. Choose another "
            "target for it"
        )


def macs_per_s(folder: Path) -> float:
    """What `measure` found."""
    value: float = json.loads((folder / MEASURED).read_text())["macs_per_s"]
    return value


def _here(device: ClusterDevice, bundle: Path, tell: Tell) -> RunRecord:
    from runtime.profile_items import items_from
    from runtime.profiler import profile

    items = [
        item
        for item in items_from([bundle])
        if item.artifact is not None and item.artifact.target == device.target
    ]
    if not items:
        raise PartitionError(
            f"device '{device.name}' could not be measured on {device.target}: the probe has no "
            "such artefact"
        )
    return profile(
        items, device.threads, RUNS, min_time_s=MIN_TIME_S, max_time_s=MAX_TIME_S,
        progress=lambda message, share: tell(share, message),
    )  # fmt: skip


def _there(device: ClusterDevice, folder: Path, bundle: Path, tell: Tell) -> RunRecord:
    with _reached(device, folder) as agent:
        tell(0.0, "upload the probe")
        digest = agent.upload(bundle, UPLOAD_NAME)
        try:
            return agent.profile(
                digest, [device.target], threads=device.threads, runs=RUNS,
                min_time_s=MIN_TIME_S, max_time_s=MAX_TIME_S,
                progress=lambda message, share: tell(share, message),
            )  # fmt: skip
        finally:
            with suppress(RuntimeFault):  # what is in the way says so by itself
                agent.remove(digest)


@contextmanager
def _reached(device: ClusterDevice, folder: Path) -> Iterator[AgentClient]:
    """The device's agent; whatever goes wrong with it inside the block names the device."""
    from runtime.client import AgentClient

    try:
        with AgentClient(access_to(device, folder)) as agent:
            yield agent
    except RuntimeFault as fault:
        error = PartitionError(
            f"device '{device.name}' at {device.address} cannot be measured: {fault}. Start its "
            "agent (edgevit agent --listen ...), or give its compute in the cluster file"
        )
        error.exit_code = fault.exit_code
        raise error from fault

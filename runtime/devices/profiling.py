"""Profile bundles on devices: push what is not there, measure there, keep what each one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runtime.bundle import bundle_of, read_bundle
from runtime.client import AgentClient
from runtime.client.calls import ProfileOptions
from runtime.devices.file import KnownDevice
from runtime.errors import RuntimeFault
from runtime.run_record import RunRecord

Told = Callable[[str, str, float], None]
"""The device, a message, and the fraction of the device's work that is done; from any thread."""

PUSHED = 0.2
"""What pushing is of the progress of a bundle; the rest is profiling."""


@dataclass(frozen=True)
class BundleWork:
    """A bundle and its targets; none are all."""

    bundle: Path
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """A bundle that was not on the device and now is; it stays there."""

    bundle: Path
    digest: str
    size_bytes: int


@dataclass
class DeviceRun:
    """What one device gave. `failures` maps a bundle to why there is no run of it."""

    known: KnownDevice
    runs: dict[Path, RunRecord] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    pushed: list[Pushed] = field(default_factory=list)


def works_from(paths: Sequence[Path]) -> list[BundleWork]:
    """What to push and profile for bundles and for artefact files that lie in theirs.

    Raises RuntimeFault for a file without a bundle: an agent takes only what it can check.
    """
    targets: dict[Path, list[str]] = {}
    for path in paths:
        if path.is_dir() and path.suffix != ".mlpackage":
            if not read_bundle(path).manifest.artifacts:
                raise RuntimeFault(f"{path}: every target failed to convert, nothing to profile")
            targets[path] = []
            continue
        if not path.exists():
            raise RuntimeFault(f"no such bundle or artefact: {path}")
        found = bundle_of(path)
        if found is None:
            raise RuntimeFault(
                f"{path} lies in no bundle, and a device takes bundles only: give the folder that "
                "`edgevit convert` wrote, or profile the file with --device local"
            )
        chosen = targets.setdefault(found[0].path, [found[1]])
        if chosen and found[1] not in chosen:
            chosen.append(found[1])
    return [BundleWork(bundle, tuple(names)) for bundle, names in targets.items()]


def profile_devices(
    devices: Sequence[KnownDevice],
    works: Sequence[BundleWork],
    options: ProfileOptions,
    told: Told,
) -> list[DeviceRun]:
    """Profile every bundle on every device; what fails on one leaves the others alone.

    Different machines work at the same time. Agents of one host name never do, since they would
    disturb each other: two addresses of one device, or two stores on one machine.
    """
    runs = [DeviceRun(known) for known in devices]
    clients = {run.known.name: client for run in runs if (client := _open(run, works))}
    reached = [run for run in runs if run.known.name in clients]

    def work(group: list[DeviceRun]) -> None:
        for run in group:
            _profile_device(clients[run.known.name], run, works, options, told)

    with ThreadPoolExecutor(max_workers=max(1, len(runs))) as pool:
        try:
            hosts: dict[str, list[DeviceRun]] = {}
            names = pool.map(lambda run: _host_of(clients[run.known.name]), reached)
            for run, host in zip(reached, names, strict=True):
                hosts.setdefault(host, []).append(run)
            for done in [pool.submit(work, group) for group in hosts.values()]:
                done.result()
        finally:  # after Ctrl-C the calls end at once, and with them the threads
            for client in clients.values():
                client.close()
    return runs


def _open(run: DeviceRun, works: Sequence[BundleWork]) -> AgentClient | None:
    """A client for a device; None, and failures, where its files are not as they should be."""
    try:
        return AgentClient(run.known.access())
    except RuntimeFault as fault:
        run.failures = {work.bundle: str(fault) for work in works}
        return None


def _host_of(client: AgentClient) -> str:
    """The host name of a device; its address where it does not answer, as it will say again."""
    try:
        return client.describe().environment.hostname
    except RuntimeFault:
        return client.access.address


def _profile_device(
    client: AgentClient,
    run: DeviceRun,
    works: Sequence[BundleWork],
    options: ProfileOptions,
    told: Told,
) -> None:
    for number, work in enumerate(works):

        def tell(message: str, done: float, number: int = number) -> None:
            told(run.known.name, message, (number + done) / len(works))

        try:
            digest = _push(client, run, work.bundle, tell)
            record = client.profile(
                digest,
                work.targets,
                **asdict(options),
                progress=lambda text, done: tell(text, PUSHED + (1 - PUSHED) * done),
            )
        except RuntimeFault as fault:
            run.failures[work.bundle] = str(fault)
        else:
            record.environment.name = run.known.name
            run.runs[work.bundle] = record
    told(run.known.name, "failed" if run.failures else "done", 1.0)


def _push(
    client: AgentClient, run: DeviceRun, bundle: Path, tell: Callable[[str, float], None]
) -> str:
    """Upload a bundle; its digest."""
    seen: list[tuple[int, int]] = []

    def sent(there: int, total: int) -> None:
        seen.append((there, total))
        tell(f"push {there / 1e6:.1f} of {total / 1e6:.1f} MB", PUSHED * there / max(total, 1))

    digest = client.upload(bundle, progress=sent)
    if seen[0][0] < seen[0][1]:
        run.pushed.append(Pushed(bundle, digest, seen[0][1]))
    return digest

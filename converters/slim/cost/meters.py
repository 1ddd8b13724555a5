"""Who measures: this machine, or a device through its agent. Nothing else runs meanwhile."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from converters.bundle_writer import writing
from converters.slim.cost.setup import Setup, device_setup, local_setup
from runtime.bundle import Bundle, read_bundle
from runtime.client import AgentClient
from runtime.devices.file import KnownDevice
from runtime.errors import RuntimeFault
from runtime.manifest import MANIFEST_NAME, REFERENCE_NAME
from runtime.profile_items import ProfileItem
from runtime.profiler import profile
from runtime.run_record import Measurement, RunRecord
from runtime.sessions.base import Array

MAX_TIME_S = 600.0
PUSHED_AS = "edgevit-latency-probes"
NOTE = "several networks that are measured side by side; the reference, the proof and the classes"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """A network's latency: the median of all its runs, and that of each block (blocks,), ms.

    Block b of one network ran beside block b of every other that was measured with it.
    """

    ms: float
    blocks_ms: Array
    runs: int


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `runs` runs and `min_time_s` seconds of each network."""

    runs: int = 100
    min_time_s: float = 0.25

    def more(self, rounds: int) -> Effort:
        """Twice as much for each round before."""
        return Effort(self.runs * 2**rounds, self.min_time_s * 2**rounds)


class Meter(Protocol):
    """Measures bundles of one artefact each, interleaved, in fresh processes."""

    setup: Setup

    def measure(
        self, bundles: Mapping[str, Path], effort: Effort, tell: Tell
    ) -> dict[str, Timing | str]:
        """By the bundles' names, how long each takes, or why it was not measured.

        Raises RuntimeFault where nothing can be measured, SlimError where the setup has changed.
        """
        ...


class LocalMeter:
    """This machine."""

    def __init__(self, target: str, precision: str | None = None, threads: int = 1) -> None:
        """Raises SlimError where the target's engine is not here."""
        self.setup = local_setup(target, precision, threads)

    def measure(
        self, bundles: Mapping[str, Path], effort: Effort, tell: Tell
    ) -> dict[str, Timing | str]:
        """By runtime.profiler, as `edgevit profile` does."""
        items = [
            _item(name, read_bundle(path), self.setup.target) for name, path in bundles.items()
        ]
        record = profile(
            items, self.setup.threads, effort.runs, min_time_s=effort.min_time_s,
            max_time_s=MAX_TIME_S, progress=lambda message, _: tell(message),
        )  # fmt: skip
        return _timings(self.setup, record, {item.id: item.id for item in items})


class DeviceMeter:
    """A device with an agent; close it, or use it in a `with`."""

    def __init__(
        self, device: KnownDevice, target: str, precision: str | None = None, threads: int = 1
    ) -> None:
        """Ask what it is. Raises RuntimeFault where none answers, SlimError without the engine."""
        self._name = device.name
        self._client = AgentClient(device.access())
        try:
            self.setup = device_setup(target, precision, threads, self._client.describe())
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def measure(
        self, bundles: Mapping[str, Path], effort: Effort, tell: Tell
    ) -> dict[str, Timing | str]:
        """One profile on the device for all of a size, so that they are interleaved there too.

        A bundle has one reference picture, so networks for another size travel in another one.
        """
        sides: dict[tuple[int, int], dict[str, Bundle]] = {}
        for name, path in bundles.items():
            bundle = read_bundle(path)
            pre = bundle.manifest.preprocessing
            sides.setdefault((pre.height, pre.width), {})[name] = bundle
        found: dict[str, Timing | str] = {}
        for group in sides.values():
            found |= self._measure(group, effort, tell)
        return found

    def _measure(
        self, bundles: dict[str, Bundle], effort: Effort, tell: Tell
    ) -> dict[str, Timing | str]:
        with ExitStack() as stack:
            with writing("the networks for the device (TMPDIR names their folder)"):
                scratch = tempfile.TemporaryDirectory(prefix="edgevit-flight-")
                folder = Path(stack.enter_context(scratch)) / "flight"
                names = together(bundles, self.setup.target, folder)
            tell(f"push to {self._name}")
            digest = self._client.upload(folder, PUSHED_AS)
        try:
            record = self._client.profile(
                digest, list(names), threads=self.setup.threads, runs=effort.runs,
                min_time_s=effort.min_time_s, max_time_s=MAX_TIME_S,
                progress=lambda message, _: tell(f"{self._name}: {message}"),
            )  # fmt: skip
        finally:
            self._remove(digest, tell)
        return _timings(self.setup, record, names)

    def _remove(self, digest: str, tell: Tell) -> None:
        """Take the networks off the device again; one that does not let go keeps them."""
        try:
            self._client.remove(digest)
        except RuntimeFault as fault:
            tell(f"{self._name} keeps the bundle {digest[:12]} ({PUSHED_AS}): {fault}")


def meter_for(
    target: str, precision: str | None = None, threads: int = 1, device: KnownDevice | None = None
) -> LocalMeter | DeviceMeter:
    """This machine's, or the device's. Raises SlimError, RuntimeFault."""
    if device is None:
        return LocalMeter(target, precision, threads)
    return DeviceMeter(device, target, precision, threads)


def together(bundles: Mapping[str, Bundle], target: str, folder: Path) -> dict[str, str]:
    """One bundle `folder` of several for pictures of one size; its target names to our names.

    An agent profiles one bundle at a time and interleaves its artefacts, so networks that are to be
    compared travel as the targets of one.
    """
    folder.mkdir()
    names: dict[str, str] = {}
    artifacts = {}
    for number, (name, bundle) in enumerate(bundles.items()):
        own = bundle.artifact(target)
        label = f"{target}-{number}"
        file = f"{label}{Path(own.file).suffix}"
        source = bundle.artifact_path(target)
        if source.is_dir():
            shutil.copytree(source, folder / file)
        else:
            shutil.copyfile(source, folder / file)
        artifacts[label] = own.model_copy(update={"target": label, "file": file})
        names[label] = name
    first = next(iter(bundles.values()))
    shutil.copyfile(first.reference_path(), folder / REFERENCE_NAME)
    model = first.manifest.model
    note = f"{NOTE} are those of {model.ref}, the artefact {target}-0"
    manifest = first.manifest.model_copy(
        update={
            "artifacts": artifacts,
            "model": model.model_copy(update={"notes": [*model.notes, note]}),
        }
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return names


def _item(name: str, bundle: Bundle, target: str) -> ProfileItem:
    artifact = bundle.artifact(target)
    return ProfileItem(
        bundle.artifact_path(target), label=name, id=name, model=bundle.manifest.model.ref,
        artifact=artifact, reference=bundle.reference_path(),
    )  # fmt: skip


def _timings(setup: Setup, record: RunRecord, names: Mapping[str, str]) -> dict[str, Timing | str]:
    """What a record says, by our names; `names` is by the artefact's target or id."""
    found: dict[str, Timing | str] = {}
    for missed in record.not_measured:
        found[names.get(missed.id) or names[missed.target or ""]] = missed.reason
    for measured in record.measurements:
        setup.check(measured.engine_version, record.environment)
        found[names.get(measured.id) or names[measured.target or ""]] = _timing(measured)
    return found


def _timing(measured: Measurement) -> Timing:
    medians = np.array([np.median(block) for block in measured.samples_ms])
    return Timing(measured.latency.p50, medians, measured.latency.n)

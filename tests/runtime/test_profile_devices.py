"""Several devices in one profile: what may run at once, and what a failure leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_agent import Shelf, serving, small_bundle

from runtime.client import Access
from runtime.client.calls import ProfileOptions
from runtime.devices.file import KnownDevice
from runtime.devices.profiling import BundleWork, DeviceRun, profile_devices, works_from
from runtime.environment import describe
from runtime.errors import RuntimeFault
from runtime.run_record import RunRecord
from runtime.wire.descriptors import DEVICE, Message, message

OPTIONS = ProfileOptions(threads=3, runs=9)


class Turns:
    """How many devices profile at this moment, and how many did at most."""

    def __init__(self, wanted: int = 1) -> None:
        self.now = self.most = 0
        self.wanted = wanted

    async def take(self) -> None:
        """Stay until `wanted` devices are here, or long enough for one more to come."""
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(1000 if self.wanted > 1 else 20):
            await asyncio.sleep(0.01)
            if self.most >= self.wanted > 1:
                break
        self.now -= 1


class Measures(Shelf):
    """A device whose profile takes a turn and gives an empty run."""

    def __init__(self, folder: Path, turns: Turns, hostname: str) -> None:
        super().__init__(folder)
        self.turns, self.hostname = turns, hostname

    async def Profile(self, request: Message, context: Any) -> AsyncIterator[Message]:
        self.asked.append(request)
        await self.turns.take()
        run = RunRecord(
            edgevit_version="0", created="2026-11-21T00:00:00+00:00", environment=describe(),
            threads=request.threads, runs=request.runs, method={}, measurements=[],
        )  # fmt: skip
        yield message("edgevit.v1.ProfileResponse")(run_json=run.model_dump_json())


@contextmanager
def devices(
    folder: Path, turns: Turns, hostnames: list[str]
) -> Iterator[tuple[list[KnownDevice], list[Measures]]]:
    with ExitStack() as stack:
        shelves = [Measures(folder / f"d{i}", turns, h) for i, h in enumerate(hostnames)]
        known = [
            KnownDevice(f"d{i}", Access(stack.enter_context(serving({DEVICE: shelf}))))
            for i, shelf in enumerate(shelves)
        ]
        yield known, shelves


def run(
    known: list[KnownDevice], works: list[BundleWork]
) -> tuple[list[DeviceRun], list[tuple[str, str, float]]]:
    told: list[tuple[str, str, float]] = []
    found = profile_devices(known, works, OPTIONS, lambda *word: told.append(word))
    return found, told


@pytest.mark.parametrize(
    ("hostnames", "most"),
    [(["a", "b", "c"], 3), (["a", "a", "a"], 1)],
    ids=["different machines", "one machine"],
)
def test_what_runs_at_once(tmp_path, hostnames, most):
    turns = Turns(most)
    works = [BundleWork(small_bundle(tmp_path / "bundle"))]
    with devices(tmp_path, turns, hostnames) as (known, _):
        found, _ = run(known, works)
    assert [len(each.runs) for each in found] == [1, 1, 1]
    assert turns.most == most


def test_a_device_is_named_asked_and_told_about(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    with devices(tmp_path, Turns(), ["a"]) as (known, shelves):
        (found,), told = run(known, [BundleWork(bundle, ("onnx", "tflite"))])
        assert found.runs[bundle].environment.name == "d0" and not found.failures
        (pushed,) = found.pushed
        (asked,) = shelves[0].asked
        assert (asked.bundle, list(asked.targets)) == (pushed.digest, ["onnx", "tflite"])
        assert (asked.threads, asked.runs, asked.per_op) == (3, 9, False)
        sizes = [f.stat().st_size for f in bundle.rglob("*") if f.is_file()]
        assert (pushed.bundle, pushed.size_bytes) == (bundle, sum(sizes))
        assert told[0][1].startswith("push 0.0 of 3.0 MB") and told[-1] == ("d0", "done", 1.0)
        fractions = [done for _, _, done in told]
        assert fractions == sorted(fractions)
        (again,), _ = run(known, [BundleWork(bundle)])
        assert again.pushed == [] and len(shelves[0].uploads) == 1


def test_what_fails_leaves_the_rest_alone(tmp_path):
    """One device is gone, one has no room for one of the bundles, one has no token file."""
    good, large = small_bundle(tmp_path / "good"), small_bundle(tmp_path / "large", 5_000_000)
    with devices(tmp_path, Turns(), ["a", "b"]) as (known, shelves):
        shelves[1].room = 4_000_000
        gone = KnownDevice("gone", Access("127.0.0.1:1"))
        locked = KnownDevice("locked", Access("127.0.0.1:1"), tmp_path / "no-token")
        works = [BundleWork(good), BundleWork(large)]
        a, b, missing, closed = run([*known, gone, locked], works)[0]
    assert list(a.runs) == [good, large] and not a.failures
    assert list(b.runs) == [good] and list(b.failures) == [large]
    assert "no room now: the disk is full" in b.failures[large]
    assert not missing.runs and set(missing.failures) == {good, large}
    assert all("nothing listens at 127.0.0.1:1" in why for why in missing.failures.values())
    assert all("cannot read the token file" in why for why in closed.failures.values())


def test_an_interruption_ends_what_runs_on_devices(tmp_path):
    class Ended(Measures):
        cancelled = False

        async def Profile(self, request: Message, context: Any) -> AsyncIterator[Message]:
            yield message("edgevit.v1.ProfileResponse")(
                progress={"message": "started", "fraction": 0.1}
            )
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    shelf = Ended(tmp_path / "d", Turns(), "a")

    def told(name: str, text: str, done: float) -> None:
        if text == "started":
            raise KeyboardInterrupt

    with serving({DEVICE: shelf}) as address, pytest.raises(KeyboardInterrupt):
        known = KnownDevice("d", Access(address))
        profile_devices([known], [BundleWork(small_bundle(tmp_path / "b"))], OPTIONS, told)
    assert shelf.cancelled


def test_bundles_and_files_in_them(make_bundle, tmp_path):
    bundle = make_bundle("onnx", "tflite")
    assert works_from([bundle]) == [BundleWork(bundle)]
    onnx, tflite = bundle / "tiny.onnx", bundle / "tiny.tflite"
    assert works_from([tflite, onnx, tflite]) == [BundleWork(bundle, ("tflite", "onnx"))]
    assert works_from([onnx, bundle]) == works_from([bundle, onnx]) == [BundleWork(bundle)]
    other = make_bundle("onnx", name="other")
    assert works_from([other, onnx]) == [BundleWork(other), BundleWork(bundle, ("onnx",))]
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(onnx.read_bytes())
    with pytest.raises(RuntimeFault, match="lies in no bundle, and a device takes bundles only"):
        works_from([bare])
    with pytest.raises(RuntimeFault, match="no such bundle or artefact"):
        works_from([tmp_path / "gone.onnx"])
    with pytest.raises(RuntimeFault, match="every target failed to convert"):
        works_from([small_bundle(tmp_path / "empty")])

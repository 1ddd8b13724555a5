"""What goes wrong under an upload: the process dies, the disk is full, the caller is malicious."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import grpc.aio
import pytest
import store_crash
from cli_tools import small_disk
from device_tools import Device, answer_of, held_of, run, serving, until
from store_tools import NAMED, parts, refused, send, tree, write_bundle

from runtime.serving.storage.store import Store
from runtime.wire.bundle_plan import chunks, plan_of
from runtime.wire.descriptors import message

CODE = grpc.StatusCode
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_bundle(tmp_path / "source", size=300_000, more={"deep/notes.txt": b"x" * 5000})


def test_killed_at_every_step_the_store_is_as_before_or_as_after():
    """SIGKILL before each call that changes the disk: uploading, removing, remembering."""
    memory = Path("/dev/shm")  # what a killed process wrote is there, also without a disk
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as home:
        found = subprocess.run(
            [sys.executable, store_crash.__file__, home],
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    assert found.returncode == 0, found.stderr
    counts = json.loads(found.stdout)
    for action, least in (("upload", 40), ("remove", 15), ("remember", 10)):
        assert counts[action]["steps"] >= least and counts[action]["old"] and counts[action]["new"]


def test_all_is_on_the_disk_before_it_becomes_visible(store, source, monkeypatch):
    """A power cut after the rename must find the files behind the name: order of fsync."""
    events = []
    real_fsync, real_rename, real_pwrite = os.fsync, os.rename, os.pwrite

    def path_of(file):
        return str(Path(f"/proc/self/fd/{file}").readlink())

    def fsync(file):
        events.append(("sync", path_of(file)))
        real_fsync(file)

    def pwrite(file, *more):
        events.append(("write", path_of(file)))
        return real_pwrite(file, *more)

    def rename(old, new, **more):
        events.append(("rename", str(old)))
        real_rename(old, new, **more)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("names of open files are in /proc")
    for name, function in (("fsync", fsync), ("rename", rename), ("pwrite", pwrite)):
        monkeypatch.setattr(os, name, function)
    plan = plan_of(source)
    upload = store.begin(plan.header())
    files = upload.files
    inside = [files / f.path for f in plan.files] + [files, files / "deep"]
    send(upload, plan, source)
    moment = events.index(("rename", str(files)))
    for path in inside:
        last_write = max((i for i, e in enumerate(events) if e == ("write", str(path))), default=-1)
        assert ("sync", str(path)) in events[last_write + 1 : moment], path
    for folder in (store.root / "bundles", files.parent):
        assert ("sync", str(folder)) in events[moment:], folder


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write beyond `size` bytes of a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_in_the_middle_of_a_chunk(store, source):
    """Half of the chunk is written when the disk is full: it is taken back, the rest is kept."""
    plan = plan_of(source)
    upload = store.begin(plan.header())
    with files_of_at_most(100_001), refused(CODE.RESOURCE_EXHAUSTED, "disk is full"):
        for part in parts(plan, source, size=5000):
            upload.write(*part)
    path = upload.files / "model.tflite"
    assert path.stat().st_size == upload.held["model.tflite"] == 100_000
    upload.suspend()
    assert store.bundles() == [] and store.held(plan.digest)["model.tflite"] == 100_000
    assert tree(send(store.begin(plan.header()), plan, source).path) == tree(source)


def test_a_disk_that_fails_between_the_bundle_and_its_name(store, source, monkeypatch):
    """The bundle is whole and stays; the caller tries again and only the name is missing."""
    plan = plan_of(source)

    def broken(new, path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, refused(CODE.INTERNAL, "Input/output error"):
        patch.setattr("runtime.serving.storage.store.replace", broken)
        store.add(source, "name")
    assert [s.names for s in store.bundles()] == [[]] and store.used() == plan.size
    assert list((store.root / "incoming").iterdir()) == []
    assert store.add(source, "name").names == ["name"]


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    try:
        with small_disk(tmp_path / "disk", "4m") as mounted:
            yield mounted
    except PermissionError as error:
        pytest.skip(str(error))


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    path = disk / ".filler"
    with path.open("wb", buffering=0) as file:
        try:
            for size in (1 << 16, 1):
                while file.write(bytes(size)) == size:
                    pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


def test_a_disk_that_is_full_from_the_start(disk, tmp_path):
    store = Store.open(disk / "store")
    large = write_bundle(tmp_path / "large", size=5_000_000)
    with refused(CODE.RESOURCE_EXHAUSTED, "disk has"):
        store.add(large)
    assert list((store.root / "incoming").iterdir()) == [] and store.used() == 0
    store.close()


def test_two_uploads_are_not_promised_the_same_room(disk, tmp_path):
    store = Store.open(disk / "store")
    sources = [write_bundle(tmp_path / f"s{i}", seed=i, size=1_700_000) for i in range(2)]
    first = store.begin(plan_of(sources[0]).header())
    with refused(CODE.RESOURCE_EXHAUSTED, "disk has"):
        store.begin(plan_of(sources[1]).header())
    first.suspend()
    assert store.add(sources[1]).size > 1_700_000
    store.close()


def test_a_disk_that_fills_up_on_the_way(disk, source):
    plan = plan_of(source)

    async def main():
        store = Store.open(disk / "store")
        async with serving(store) as device:
            messages = iter(chunks(plan, source, {}, 8192))
            filler = None

            def filling():
                nonlocal filler
                for number, request in enumerate(messages):
                    if number == 20:
                        while sum(store.held(plan.digest).values()) < 100_000:
                            time.sleep(0.01)
                        filler = fill(disk)
                    yield request

            error = await answer_of(device.send(filling()))
            held = await held_of(device, plan)
            other = write_bundle(disk.parent / "other", seed=3)
            others = await answer_of(device.send(chunks(plan_of(other), other, {}, 8192)))
            filler.unlink()
            answer = await device.upload(source)
        store.close()
        return error, held, others, answer

    error, held, others, answer = run(main)
    assert error.code() is CODE.RESOURCE_EXHAUSTED and "disk is full" in error.details()
    assert others.code() is CODE.RESOURCE_EXHAUSTED
    assert 100_000 < sum(held.values()) < plan.size
    assert answer.received == plan.size - sum(held.values())
    again = Store.open(disk / "store")
    assert tree(again.find(NAMED).path) == tree(source)
    again.close()


def test_a_disk_too_full_for_the_name(disk, source, tmp_path):
    """All files fit, names.json does not: nothing becomes visible, and it goes on later."""
    store = Store.open(disk / "store")
    first = store.add(write_bundle(tmp_path / "first", seed=5), "first")
    plan = plan_of(source)
    upload = store.begin(plan.header())
    for part in parts(plan, source):
        upload.write(*part)
    filler = fill(disk)
    with refused(CODE.RESOURCE_EXHAUSTED, "disk is full"):
        upload.finish()
    assert [s.digest for s in store.bundles()] == [first.digest]
    with refused(CODE.RESOURCE_EXHAUSTED):
        store.remember("first", {"threads": 1, "instances": 1})
    assert store.remembered() == {}
    store.close()
    again = Store.open(disk / "store")  # signs itself in the room of what it gives up
    assert [s.names for s in again.bundles()] == [["first"]]
    assert again.remove("first")[0] == first.digest  # removing works on a full disk
    filler.unlink()
    assert again.add(source).digest == plan.digest
    again.close()


SERVER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import grpc.aio
from device_tools import Models
from runtime.serving.services.device import DeviceService
from runtime.serving.limits import Limits
from runtime.serving.storage.store import Store
from runtime.wire.descriptors import DEVICE
from runtime.wire.service import handler

async def main():
    server = grpc.aio.server()
    service = DeviceService(Store.open(Path(sys.argv[2])), Models(), Limits())
    server.add_generic_rpc_handlers((handler(DEVICE, service),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.wait_for(server.wait_for_termination(), 120)

asyncio.run(main())
"""


@contextmanager
def server(root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT), str(root)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_a_server_that_is_killed_again_and_again(tmp_path, source):
    """At three chunks of one upload; each time it goes on where the last server died."""
    plan, root = plan_of(source), tmp_path / "store"
    messages = list(chunks(plan, source, {}, 4096))
    cuts = sorted(random.Random(7).sample(range(5, len(messages) - 5), 3))

    async def part_of(address, process, cut):
        async with grpc.aio.insecure_channel(address) as channel:
            device = Device(channel)
            before = sum((await held_of(device, plan)).values())
            goal = sum(len(m.chunk.data) for m in messages[:cut])

            async def until_the_cut():
                for request in chunks(plan, source, await held_of(device, plan), 4096):
                    yield request
                    if request.HasField("chunk") and came[0] >= goal:
                        await asyncio.Event().wait()
                    came[0] += len(request.chunk.data)

            came = [before]
            started = device("UploadBundle", until_the_cut())
            while sum((await held_of(device, plan)).values()) < goal:
                await asyncio.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            error = await answer_of(started)
            return before, goal, error.code()

    reached = 0
    for cut in cuts:
        with server(root) as (process, address):
            before, goal, code = run(lambda: part_of(address, process, cut))  # noqa: B023
            assert before >= reached and code is CODE.UNAVAILABLE
            reached = goal

    async def rest(address):
        async with grpc.aio.insecure_channel(address) as channel:
            return await Device(channel).upload(source)

    with server(root) as (_, address):
        answer = run(lambda: rest(address))
    assert 0 < answer.received <= plan.size - reached
    store = Store.open(root)
    assert tree(store.find(NAMED).path) == tree(source) and store.generation == 5
    store.close()


def test_what_leaves_the_store_is_refused_before_a_byte_is_written(store, source):
    def forged(path):
        made = plan_of(source).header("evil")
        made.files[0].path = path
        return message("edgevit.v1.UploadRequest")(header=made)

    before = sorted(p for p in store.root.parent.rglob("*") if store.root not in p.parents)
    paths = [
        "../evil",
        "/etc/evil",
        "a/../../evil",
        "C:\\evil",
        "..\\evil",
        "a\0b",
        "x/" * 40 + "x",
    ]

    async def main():
        async with serving(store) as device:
            return [await answer_of(device.send([forged(p)])) for p in paths]

    for error in run(main):
        assert error.code() is CODE.INVALID_ARGUMENT
    assert list((store.root / "incoming").iterdir()) == []
    assert sorted(p for p in store.root.parent.rglob("*") if store.root not in p.parents) == before


def nonsense(random, plan, source):
    """A stream of messages of which some are right, and some are spoiled."""
    messages = list(chunks(plan, source, {}, 40_000))
    for _ in range(random.randint(1, 4)):
        request = random.choice(messages)
        if request.HasField("header") and request.header.files:
            file = random.choice(request.header.files)
            field = random.choice(["path", "size", "sha256", "name", "digest", "drop"])
            text = "".join(chr(random.choice([0, 46, 47, 65, 233, 0x202E])) for _ in range(9))
            if field == "size":
                file.size = random.getrandbits(random.randint(1, 64))
            elif field in ("path", "sha256"):
                setattr(file, field, text)
            elif field == "drop":
                del request.header.files[random.randrange(len(request.header.files)) :]
            else:
                setattr(request.header, field, text)
        elif random.random() < 0.5:  # the field of a message that had none makes a chunk of it
            request.chunk.offset = random.getrandbits(random.randint(1, 64))
        else:
            request.chunk.data = random.randbytes(random.randint(0, 100))
            request.chunk.file = random.getrandbits(random.choice([2, 32]))
    if random.random() < 0.2:
        random.shuffle(messages)
    return messages[: random.randint(0, len(messages))] if random.random() < 0.3 else messages


def test_nonsense_is_refused_and_leaves_nothing_running(store, source):
    plan, seeded = plan_of(source), random.Random(11)
    expected = {
        CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION, CODE.DATA_LOSS, CODE.RESOURCE_EXHAUSTED,
    }  # fmt: skip

    async def main():
        codes = set()
        async with serving(store) as device:
            tasks = len(asyncio.all_tasks())
            for _ in range(400):
                try:
                    await device.send(nonsense(seeded, plan, source))
                except grpc.RpcError as error:
                    codes.add(error.code())
                    assert error.code() in expected, error
                else:
                    assert tree(store.find(plan.digest).path) == tree(source)
                    store.remove(plan.digest)
            assert store._active == {}
            await until(lambda: len(asyncio.all_tasks()) <= tasks + 1)
        return codes

    codes = run(main)
    assert codes >= {CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION, CODE.DATA_LOSS}

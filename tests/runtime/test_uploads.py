"""Uploads into the store: chunks in order, resumed, refused, and what is kept of them."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_tools import header, parts, refused, reopen, send, tree, write_bundle

from runtime.digest import size_of
from runtime.serving.storage.incoming import KEEP_COUNT, KEEP_S
from runtime.serving.storage.store import Store
from runtime.wire.bundle_plan import BundlePlan, digest_of, plan_of, scan

CODE = grpc.StatusCode
DAY_S = 24 * 3600


@pytest.fixture
def source(tmp_path):
    return write_bundle(tmp_path / "source", more={"deep/notes.txt": b"x" * 9000, "empty": b""})


def half(store: Store, source: Path, count: int = 2) -> str:
    """Suspend an upload after `count` chunks; the digest."""
    plan = plan_of(source)
    upload = store.begin(plan.header())
    for part in list(parts(plan, source))[:count]:
        upload.write(*part)
    upload.suspend()
    return plan.digest


def left(store: Store) -> list[str]:
    """The uploads that lie on the disk."""
    return sorted(path.name for path in (store.root / "incoming").iterdir())


def test_chunk_by_chunk(store, source):
    plan = plan_of(source)
    upload = store.begin(plan.header("n"))
    assert not upload.complete and upload.held == {}
    for part in parts(plan, source):
        assert store.bundles() == []
        upload.write(*part)
    assert upload.received == plan.size and store.used() == plan.size
    stored = upload.finish()
    assert stored.names == ["n"] and tree(stored.path) == tree(source)
    assert left(store) == [] and store.held(plan.digest) == {} and store.used() == plan.size
    mode = (stored.path / "model.tflite").stat().st_mode & 0o777
    assert mode == 0o600 and (stored.path / "deep").stat().st_mode & 0o777 == 0o700


def test_an_upload_that_cannot_begin_claims_nothing(store, source, monkeypatch):
    real = os.open

    def full(path, *arguments, **options):
        if str(path).endswith("files"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *arguments, **options)

    plan = plan_of(source)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with refused(CODE.INTERNAL, "Too many open files"):
            store.begin(plan.header("n"))
    assert [partial.claim for partial in store._incoming.partials.values()] == [0]
    assert send(store.begin(plan.header("n")), plan, source).names == ["n"]


def test_files_may_come_in_any_order(store, source):
    plan = plan_of(source)
    upload = store.begin(plan.header())
    queues = [
        [p for p in parts(plan, source, size=1000) if p[0] == i] for i in range(len(plan.files))
    ]
    while any(queues):
        for queue in queues:
            if queue:
                upload.write(*queue.pop(0))
    assert tree(upload.finish().path) == tree(source)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_cut_anywhere_and_resumed(tmp_path_factory, data):
    """Whatever the cuts, in the same process or over a restart, only the rest is sent."""
    home = tmp_path_factory.mktemp("cut")
    source = write_bundle(home / "source", more={"deep/notes.txt": b"x" * 9000, "empty": b""})
    plan = plan_of(source)
    store = Store.open(home / "store")
    sent = 0
    for _ in range(data.draw(st.integers(1, 4))):
        upload = store.begin(plan.header())
        assert upload.held == store.held(plan.digest)
        size = data.draw(st.integers(500, 6000))
        coming = list(parts(plan, source, dict(upload.held), size))
        for part in coming[: data.draw(st.integers(0, len(coming)))]:
            upload.write(*part)
        sent += upload.received
        upload.suspend()
        assert sum(store.held(plan.digest).values()) == sent
        if data.draw(st.booleans()):
            store = reopen(store)
    upload = store.begin(plan.header())
    stored = send(upload, plan, source)
    assert sent + upload.received == plan.size and tree(stored.path) == tree(source)
    store.close()


def test_a_resume_with_the_files_in_another_order(store, source):
    plan = plan_of(source)
    half(store, source, 4)
    made = plan.header()
    files = list(made.files)[::-1]
    del made.files[:]
    made.files.extend(files)
    upload = store.begin(made)
    assert sum(upload.held.values()) > 4096
    for number, file in enumerate(files):
        whole, start = (source / file.path).read_bytes(), upload.held.get(file.path, 0)
        if whole[start:]:
            upload.write(number, start, whole[start:], hashlib.sha256(whole[start:]).digest())
    assert tree(upload.finish().path) == tree(source)


def test_wrong_chunks(store, source):
    plan = plan_of(source)
    upload = store.begin(plan.header())
    (number, _, data, digest), (_, _, second, _), *_ = parts(plan, source)
    name = plan.files[number].path
    with refused(CODE.DATA_LOSS, "another sha256"):
        upload.write(number, 0, data, hashlib.sha256(b"").digest())
    with refused(CODE.DATA_LOSS):
        upload.write(number, 0, data, b"")
    with refused(CODE.INVALID_ARGUMENT, f"file {len(plan.files)}"):
        upload.write(len(plan.files), 0, data, digest)
    with refused(CODE.INVALID_ARGUMENT, "empty chunk"):
        upload.write(number, 0, b"", hashlib.sha256(b"").digest())
    with refused(CODE.INVALID_ARGUMENT, "the chunks bring more"):
        upload.write(number, 0, bytes(20_000), hashlib.sha256(bytes(20_000)).digest())
    assert upload.held == {} and upload.received == 0
    upload.write(number, 0, data, digest)
    for offset in (0, 1, len(data) + 1, 2**63):
        with refused(CODE.FAILED_PRECONDITION, "ask UploadStatus"):
            upload.write(number, offset, second, hashlib.sha256(second).digest())
    with refused(CODE.FAILED_PRECONDITION, "not whole"):
        upload.finish()
    assert upload.held == {name: len(data), "empty": 0}
    assert tree(send(upload, plan, source).path) == tree(source)
    with refused(CODE.FAILED_PRECONDITION, "is over"):
        upload.write(number, 0, data, digest)


def test_a_file_with_other_bytes_begins_anew(store, source):
    """Every chunk is as it was sent, but the file is not the one of the header."""
    plan = plan_of(source)
    upload = store.begin(plan.header())
    for number, offset, data, digest in parts(plan, source):
        if plan.files[number].path == "model.tflite":
            other = bytes(len(data))
            upload.write(number, offset, other, hashlib.sha256(other).digest())
        else:
            upload.write(number, offset, data, digest)
    with refused(CODE.DATA_LOSS, r"model.tflite"):
        upload.finish()
    assert store.bundles() == [] and "model.tflite" not in upload.held
    assert upload.held["deep/notes.txt"] == 9000
    assert tree(send(upload, plan, source).path) == tree(source)


def bad_artifact(m):
    m["artifacts"]["tflite"]["sha256"] = "0" * 64


def bad_target(m):
    m["artifacts"]["../x"] = m["artifacts"].pop("tflite")


def leaving(m):
    m["artifacts"]["tflite"]["file"] = "../../names.json"


def with_nul(m):
    m["artifacts"]["tflite"]["file"] = "a\0b"


def newer(m):
    m["schema_version"] = 2


UNSOUND = [bad_artifact, bad_target, leaving, with_nul, newer, lambda m: m.pop("model")]


def unread(source: Path) -> BundlePlan:
    """The plan of a folder whose manifest plan_of would not take."""
    files = scan(source)
    return BundlePlan(digest_of(files), tuple(files))


@pytest.mark.parametrize("change", UNSOUND)
def test_whole_but_no_sound_bundle(store, tmp_path, change):
    """Its digest is right; what its manifest says is not."""
    source = write_bundle(tmp_path / "source", change=change)
    plan = unread(source)
    upload = store.begin(plan.header())
    with refused(CODE.INVALID_ARGUMENT, "not a sound bundle"):
        send(upload, plan, source)
    assert store.bundles() == [] and left(store) == [] and store.used() == 0


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"schema_version": 1}', '{"a": ' + "9" * 5000 + "}", "\ud800"]
)
def test_manifests_that_are_none(store, tmp_path, text):
    source = write_bundle(tmp_path / "source")
    (source / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    plan = unread(source)
    with refused(CODE.INVALID_ARGUMENT, "not a sound bundle"):
        send(store.begin(plan.header()), plan, source)
    assert left(store) == []


def test_two_uploads_of_one_bundle(store, source):
    plan = plan_of(source)
    first = store.begin(plan.header())
    with refused(CODE.ABORTED, "at this moment"):
        store.begin(plan.header())
    first.suspend()
    first.suspend()
    second = store.begin(plan.header())
    with refused(CODE.FAILED_PRECONDITION):
        first.finish()
    assert tree(send(second, plan, source).path) == tree(source)


@pytest.mark.parametrize("harm", ["link", "folder link", "hard link", "stray", "longer", "pipe"])
def test_what_somebody_put_into_a_partial_upload(store, source, tmp_path, harm):
    """Nobody but the agent writes there; if one did, nothing of it is followed or kept."""
    plan = plan_of(source)
    half(store, source, 2)
    files = store.root / "incoming" / plan.digest / "files"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"")
    if harm == "link":
        (files / "model.tflite").symlink_to(outside / "victim")
    elif harm == "folder link":
        (files / "deep" / "notes.txt").unlink()
        (files / "deep").rmdir()
        (files / "deep").symlink_to(outside)
    elif harm == "hard link":
        os.link(outside / "victim", files / "model.tflite")
    elif harm == "stray":
        (files / "more").write_bytes(b"x")
    elif harm == "longer":
        (files / "deep" / "notes.txt").write_bytes(bytes(10_000))
    else:
        os.mkfifo(files / "model.tflite")
    upload = store.begin(plan.header())
    assert upload.held == {}
    assert tree(send(upload, plan, source).path) == tree(source)
    assert tree(outside) == {"victim": hashlib.sha256(b"").hexdigest()}


@pytest.mark.parametrize("make", [os.symlink, os.link])
@pytest.mark.parametrize("begun", [False, True])
def test_a_link_put_there_while_the_upload_runs(store, source, tmp_path, make, begun):
    """In the place of a file that is to come, and of one of which a part came."""
    plan = plan_of(source)
    upload = store.begin(plan.header())
    victim, path = tmp_path / "victim", upload.files / "model.tflite"
    coming = list(parts(plan, source))
    if begun:
        part = next(p for p in coming if plan.files[p[0]].path == "model.tflite")
        upload.write(*part)
        upload.write(*next(p for p in coming if p[0] != part[0]))
        path.unlink()
    victim.write_bytes(bytes(4096))
    make(victim, path)
    with refused(CODE.INTERNAL, "model.tflite"):
        send(upload, plan, source)
    assert victim.read_bytes() == bytes(4096) and store.bundles() == []


def test_old_partial_uploads_go_at_the_start(store, tmp_path):
    sources = [write_bundle(tmp_path / f"s{i}", seed=i) for i in range(3)]
    digests = [half(store, path) for path in sources]
    now = time.time()
    for digest, age in zip(digests, [KEEP_S + 60, KEEP_S - 3600, -DAY_S], strict=True):
        os.utime(store.root / "incoming" / digest / "header.json", (now - age, now - age))
    again = reopen(store)
    assert left(again) == sorted(digests[1:])
    assert again.held(digests[0]) == {} and again.held(digests[1])
    again.close()


def test_partial_uploads_beyond_the_quota_go_oldest_first(store, tmp_path):
    sources = [write_bundle(tmp_path / f"s{i}", seed=i) for i in range(4)]
    whole = store.add(sources[3], "whole")
    digests = [half(store, path, 3) for path in sources[:3]]
    now, held = time.time(), [sum(store.held(d).values()) for d in digests]
    for digest, age in zip(digests, [200, 300, 100], strict=True):
        os.utime(store.root / "incoming" / digest / "header.json", (now - age, now - age))
    again = reopen(store, whole.size + held[0] + held[2])
    assert left(again) == sorted([digests[0], digests[2]])
    again = reopen(again, whole.size + held[2])
    assert left(again) == [digests[2]]
    again = reopen(again, 1)
    assert left(again) == [] and again.find("whole")
    again.close()


def test_a_new_upload_takes_the_place_of_partial_ones(store, tmp_path):
    small = write_bundle(tmp_path / "small")
    large = write_bundle(tmp_path / "large", seed=1, size=20_000)
    again = reopen(store, size_of(large) + 1000)
    digest = half(again, small, 3)
    plan = plan_of(large)
    upload = again.begin(plan.header())
    assert again.held(digest) == {} and left(again) == [plan.digest]
    with refused(CODE.RESOURCE_EXHAUSTED, "may have"):  # one that runs is not pushed out
        again.begin(header(small))
    send(upload, plan, large)
    again.close()


def test_bundles_that_lost_their_name_make_room(store, tmp_path):
    """A model converted and uploaded again and again does not fill the store."""
    sources = [write_bundle(tmp_path / f"s{i}", seed=i) for i in range(5)]
    size = size_of(sources[0])
    again = reopen(store, 3 * size + 100)
    digests = [again.add(path, "model").digest for path in sources[:3]]
    assert again.used() == 3 * size and again.find(digests[0]).names == []
    again.in_use = lambda digest: digest == digests[0]
    with refused(CODE.RESOURCE_EXHAUSTED, "may have"):  # what cannot fit pushes nothing out
        again.add(write_bundle(tmp_path / "large", size=3 * size))
    assert again.used() == 3 * size
    fourth = again.add(sources[3], "other")
    assert {s.digest for s in again.bundles()} == {digests[0], digests[2], fourth.digest}
    with refused(CODE.RESOURCE_EXHAUSTED, "may have"):
        again.add(sources[4], "third")
    again.in_use = lambda digest: False
    again.add(sources[4], "third")
    assert {n for s in again.bundles() for n in s.names} == {"model", "other", "third"}
    again.close()


def test_partial_uploads_are_counted(store, tmp_path):
    """A header costs little, but not nothing."""
    for i in range(KEEP_COUNT + 4):
        half(store, write_bundle(tmp_path / f"s{i}", seed=i, size=10), 0)
    assert len(left(store)) == KEEP_COUNT
    again = reopen(store)
    assert len(left(again)) == KEEP_COUNT
    again.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1, "files": 3}'])
def test_a_damaged_header_drops_the_upload(store, source, text):
    digest = half(store, source)
    (store.root / "incoming" / digest / "header.json").write_text(text)
    (store.root / "incoming" / "junk").mkdir()
    again = reopen(store)
    assert left(again) == []
    again.add(source)
    again.close()


def test_bad_digests_for_the_status(store):
    for digest in ["", "x", "0" * 63, "A" * 64, "../" + "0" * 61]:
        with refused(CODE.INVALID_ARGUMENT, "64 lower-case hex"):
            store.held(digest)
    assert store.held("0" * 64) == {}

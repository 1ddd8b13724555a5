"""The store of an agent: bundles in, bundles found again, one agent at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from store_tools import NAMED, header, refused, reopen, send, tree, write_bundle

from runtime.bundle import check_bytes
from runtime.digest import sha256_tree, size_of
from runtime.errors import RuntimeFault
from runtime.serving.limits import Limits
from runtime.serving.storage.names import default_name
from runtime.serving.storage.store import Store
from runtime.wire.bundle_plan import plan_of

CODE = grpc.StatusCode
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_bundle(tmp_path / "source", more={"deep/er/notes.txt": b"x", "empty": b""})


def test_a_bundle_goes_in_whole_and_is_found_again(store, source):
    stored = store.add(source, "mine")
    assert stored.names == ["mine"] and stored.digest == sha256_tree(source)
    assert tree(stored.path) == tree(source) and stored.size == size_of(source) == store.used()
    check_bytes(stored.bundle)
    again = reopen(store)
    assert again.bundles() == [stored] and again.find("mine") == again.find(stored.digest)
    again.close()


def test_an_engine_finds_its_file(make_bundle, store):
    stored = store.add(make_bundle("onnx", "tflite"))
    assert stored.names == ["tiny"]
    assert stored.bundle.artifact_path("onnx").parent == stored.path
    check_bytes(store.find("tiny").bundle)


def test_names(store, source, tmp_path):
    first = store.add(source)
    assert first.names == [NAMED]
    store.add(source, "also")
    assert store.find(first.digest).names == ["also", NAMED] and len(store.bundles()) == 1
    second = store.add(write_bundle(tmp_path / "other", seed=1), "also")
    assert store.find("also").digest == second.digest
    assert store.find(first.digest).names == [NAMED]
    with refused(CODE.NOT_FOUND, "Did you mean 'also'?"):
        store.find("alsoo")
    for bad in ["..", "a/b", ".hidden", "x" * 129, "a\n", "b" * 64, "Aä"]:
        with refused(CODE.INVALID_ARGUMENT, "bundle name"):
            store.begin(header(source, bad))


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("shvit_s1", "shvit_s1"),
        ("timm:vit_tiny", "timm-vit_tiny"),
        ("../../etc/passwd", "etc-passwd"),
        ("ä", "model"),
        ("f" * 64, "model-ffffffffffff"),
        ("m" * 500, "m" * 128),
    ],
)
def test_names_made_of_model_refs(ref, name):
    assert default_name(ref) == name


def test_remove_by_name_and_by_digest(store, source):
    digest = store.add(source, "one").digest
    store.add(source, "two")
    store.remember("one", {"threads": 2, "instances": 1})
    store.remember("one/tflite", {"threads": 1, "instances": 1})
    store.remember("two", {"threads": 1, "instances": 1})
    assert store.remove("one") == (digest, 0)
    assert store.find("two").names == ["two"] and list(store.remembered()) == ["two"]
    assert store.remove("two") == (digest, size_of(source))
    assert store.bundles() == [] and store.used() == 0 and store.remembered() == {}
    with refused(CODE.NOT_FOUND, "no bundle 'two'"):
        store.remove("two")
    store.add(source, "one")
    store.add(source, "two")
    assert store.remove(digest) == (digest, size_of(source))
    assert [p for p in store.root.rglob("*") if p.name == "model.tflite"] == []
    again = reopen(store)
    assert again.bundles() == []
    again.close()


def test_models_are_remembered(store, source):
    for name in "ab":
        store.add(source, name)
    store.remember("a", {"threads": 2, "instances": 3})
    store.remember("b/onnx", {"threads": 1, "instances": 1})
    store.forget("a")
    store.forget("never")
    again = reopen(store)
    kept = {"b/onnx": {"threads": 1, "instances": 1}}
    assert store.remembered() == again.remembered() == kept
    again.close()


def test_who_the_store_is(store):
    again = reopen(store)
    assert again.device_id == store.device_id and len(store.device_id) == 36
    assert (store.generation, again.generation) == (1, 2)
    again.close()


def test_files_in_use_stay(store, source):
    """The service says by whom; a model that begins to load meanwhile is caught here."""
    digest = store.add(source, "one").digest
    store.add(source, "two")
    store.in_use = lambda used: used == digest
    assert store.remove("two") == (digest, 0)
    for what in ("one", digest):
        with refused(CODE.FAILED_PRECONDITION, "in use"):
            store.remove(what)
    store.in_use = lambda used: False
    assert store.remove("one")[1] == size_of(source)


HOLD = """
import sys, time
from pathlib import Path
from runtime.serving.storage.store import Store
store = Store.open(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(120)
"""


def test_one_agent_a_store_until_it_dies(tmp_path):
    folder = tmp_path / "store"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RuntimeFault, match=f"in use by another agent .process {other.pid}, "):
            Store.open(folder)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.communicate(timeout=30)
    mine = Store.open(folder)
    with pytest.raises(RuntimeFault, match=f"process {os.getpid()}"):
        Store.open(folder)
    mine.close()
    Store.open(folder).close()


def test_child_processes_do_not_hold_the_lock(store):
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        reopen(store).close()
    finally:
        child.kill()
        child.wait()


def test_a_damaged_bundle_is_told_and_never_served(store, source, tmp_path):
    stored = store.add(source, "hurt")
    other = store.add(write_bundle(tmp_path / "other", seed=1), "well")
    (stored.path / "model.tflite").write_bytes(b"short")
    again = reopen(store)
    assert [s.digest for s in again.bundles()] == [other.digest]
    names, why = again.damaged()[stored.digest]
    assert names == ["hurt"] and "model.tflite" in why and str(store.root) not in why
    with refused(CODE.DATA_LOSS, "upload it again"):
        again.find("hurt")
    mended = again.add(source, "hurt")
    assert again.find("hurt") == mended and again.damaged() == {} and tree(mended.path)
    assert tree(mended.path) == tree(source)
    again.close()


def change(path: Path) -> None:
    """Other bytes, as many as before."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("used", [True, False])
def test_a_suspect_is_found_still_and_mended_by_an_upload(store, source, used):
    stored = store.add(source, "hurt")
    store.in_use = lambda digest: used
    change(stored.path / "model.tflite")
    assert store.whole(stored.digest) == stored
    store.suspect(stored.digest)
    assert store.whole(stored.digest) is None and store.find("hurt") == stored
    upload = store.begin(header(source, "hurt"))
    assert not upload.complete and stored.path.exists() == used
    mended = send(upload, plan_of(source), source)
    assert store.whole(stored.digest) == mended and tree(mended.path) == tree(source)
    assert store.used() == size_of(source) and store.begin(header(source, "hurt")).complete


def test_adding_again_mends_changed_bytes(store, source):
    stored = store.add(source, "hurt")
    change(stored.path / "model.tflite")
    again = reopen(store)
    mended = again.add(source, "hurt")
    assert mended.names == ["hurt"] and tree(mended.path) == tree(source)
    again.close()


def test_a_closed_store_changes_nothing(store, source, tmp_path):
    stored = store.add(source, "one")
    late = store.begin(header(source, "two"))
    store.close()
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    for change_it in (
        lambda: store.begin(header(write_bundle(tmp_path / "other", seed=1), "other")),
        late.finish,
        lambda: store.remove("one"),
        lambda: store.remember("one", {"threads": 1}),
        lambda: store.forget("one"),
    ):
        with refused(CODE.UNAVAILABLE, "the agent is ending"):
            change_it()
    assert before == {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    assert store.find("one") == stored


@pytest.mark.parametrize("harm", ["manifest", "link", "gone", "nonsense"])
def test_every_kind_of_damage_is_seen_at_the_start(store, source, harm, tmp_path):
    stored = store.add(source)
    if harm == "manifest":
        (stored.path / "manifest.json").write_text("[" * 100_000)
    elif harm == "link":
        (stored.path / "model.tflite").unlink()
        (stored.path / "model.tflite").symlink_to(tmp_path / "source" / "model.tflite")
    elif harm == "gone":
        (stored.path / "model.tflite").unlink()
    else:
        (stored.path / "manifest.json").write_text(json.dumps({"schema_version": 1, "x": 10}))
    again = reopen(store)
    assert list(again.damaged()) == [stored.digest] and again.bundles() == []
    assert again.remove(stored.digest)[0] == stored.digest and again.damaged() == {}
    again.close()


def test_places_that_are_no_store(tmp_path, source):
    with pytest.raises(RuntimeFault, match="a folder of its own"):
        Store.open(source)
    assert not (source / "lock").exists()
    with pytest.raises(RuntimeFault, match="cannot keep a store"):
        Store.open(source / "model.tflite" / "store")
    damaged = tmp_path / "damaged"
    Store.open(damaged).close()
    for text in ["{", "[]", '{"schema_version": 2}']:
        (damaged / "names.json").write_text(text)
        with pytest.raises(RuntimeFault, match=r"names.json.*the bundles stay"):
            Store.open(damaged)
    (damaged / "names.json").write_text('{"schema_version": 1, "names": 3}')
    with pytest.raises(RuntimeFault, match="cannot open the store"):
        Store.open(damaged)
    (damaged / "names.json").unlink()
    Store.open(damaged).close()


def test_quota(tmp_path):
    small = write_bundle(tmp_path / "small", size=3000)
    large = write_bundle(tmp_path / "large", size=30_000, seed=1)
    quota = size_of(small) + size_of(large) - 1
    store = Store.open(tmp_path / "store", quota)
    store.add(small, "small")
    with refused(CODE.RESOURCE_EXHAUSTED, f"may have {quota} bytes"):
        store.add(large, "large")
    assert store.used() == size_of(small) and list((store.root / "incoming").iterdir()) == []
    store.remove("small")
    assert store.add(large, "large").size == store.used() == size_of(large)
    store.close()


def test_limits_of_one_bundle(tmp_path, source):
    files, size = len(tree(source)), size_of(source)
    for limits, words in [
        (Limits(bundle_files=files - 1), f"{files} files"),
        (Limits(bundle_bytes=size - 1), f"{size} bytes"),
    ]:
        store = Store.open(tmp_path / "store", None, limits)
        with refused(CODE.RESOURCE_EXHAUSTED, words):
            store.add(source)
        store.close()
    store = Store.open(tmp_path / "store", None, Limits(bundle_files=files, bundle_bytes=size))
    store.add(source)
    store.close()


def test_uploading_what_is_there_only_names_it(store, source):
    store.add(source, "one")
    upload = store.begin(header(source, "two"))
    assert upload.complete and upload.held == {}
    with refused(CODE.INVALID_ARGUMENT, "in the store already"):
        upload.write(0, 0, b"x", b"")
    assert upload.finish().names == ["one", "two"]
    with refused(CODE.FAILED_PRECONDITION, "is over"):
        upload.finish()
    gone = store.begin(header(source, "three"))
    store.remove(plan_of(source).digest)
    with refused(CODE.NOT_FOUND):
        gone.finish()
    assert send(store.begin(header(source, "four")), plan_of(source), source).names == ["four"]

"""A bundle's files on the way: which paths are taken, what is read, what is sent."""

from __future__ import annotations

import hashlib
import os
import tracemalloc

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_tools import header, refused, write_bundle

from runtime.digest import sha256_tree, size_of
from runtime.errors import RuntimeFault
from runtime.serving.limits import GIB, Limits
from runtime.serving.storage.header import header_of
from runtime.wire.bundle_paths import check_paths
from runtime.wire.bundle_plan import chunks, digest_of, plan_of, scan
from runtime.wire.descriptors import message
from runtime.wire.refused import Refused

CODE = grpc.StatusCode
NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def source(tmp_path):
    more = {"Data/weights/w.bin": bytes(range(256)) * 40, "empty": b"", f"{NFC}/a b.txt": b"1"}
    return write_bundle(tmp_path / "source", more=more)


def test_the_plan_is_the_folder(source):
    (source / "nothing" / "in").mkdir(parents=True)
    plan = plan_of(source)
    assert plan.digest == sha256_tree(source) == digest_of(list(plan.files))
    assert plan.size == size_of(source) and list(plan.files) == scan(source)
    assert [f.path for f in plan.files] == sorted(f.path for f in plan.files)
    assert {f.path for f in plan.files} == {
        "Data/weights/w.bin", "empty", f"{NFC}/a b.txt",
        "manifest.json", "model.tflite", "reference.npz",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "link to a folder", "dangling", "pipe"])
def test_links_and_non_files_are_refused(source, kind):
    if kind == "pipe":
        os.mkfifo(source / "odd")
    else:
        goal = {"link": "model.tflite", "link to a folder": "Data", "dangling": "gone"}[kind]
        (source / "Data" / "odd").symlink_to(source / goal)
    with pytest.raises(RuntimeFault, match=r"odd is .*plain files only"):
        plan_of(source)


def test_what_is_no_bundle(tmp_path, source):
    with pytest.raises(RuntimeFault, match="does not exist"):
        plan_of(tmp_path / "gone")
    (source / "aux.txt").write_text("")
    with refused(CODE.INVALID_ARGUMENT, "device on Windows"):
        plan_of(source)


@settings(deadline=None)
@given(size=st.integers(1, 12_000), part=st.integers(0, 20_000))
def test_chunks_bring_exactly_what_is_not_held(tmp_path_factory, size, part):
    folder = tmp_path_factory.getbasetemp() / "planned"
    path = folder if folder.exists() else write_bundle(folder, more={"b": b"x" * 7000, "e": b""})
    plan = plan_of(path)
    whole = {f.path: (path / f.path).read_bytes() for f in plan.files}
    held, left = {}, part
    for file in plan.files:
        held[file.path] = min(left, file.size)
        left -= held[file.path]
    told = []
    first, *rest = chunks(plan, path, held, size, "n", lambda sent, of: told.append((sent, of)))
    assert first.header.name == "n" and first.header.digest == plan.digest
    got = {name: data[: held[name]] for name, data in whole.items()}
    for request in rest:
        chunk = request.chunk
        name = plan.files[chunk.file].path
        assert chunk.offset == len(got[name]) and 0 < len(chunk.data) <= size
        assert chunk.sha256 == hashlib.sha256(chunk.data).digest()
        got[name] += chunk.data
    assert got == whole
    assert told[0][0] == sum(held.values()) and told[-1] == (plan.size, plan.size)
    assert told == sorted(told)


def test_files_are_read_lazily(tmp_path):
    path = write_bundle(tmp_path / "b", size=30_000_000)
    plan = plan_of(path)
    tracemalloc.start()
    total = sum(len(request.chunk.data) for request in chunks(plan, path, {}, 100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == plan.size and peak < 2_000_000


def test_a_file_that_changes_while_it_is_sent(source):
    plan = plan_of(source)
    (source / "model.tflite").write_bytes(b"short")
    with pytest.raises(RuntimeFault, match=r"model\.tflite became shorter"):
        list(chunks(plan, source, {}, 1000))
    (source / "model.tflite").unlink()
    with pytest.raises(RuntimeFault, match="cannot read"):
        list(chunks(plan, source, {}, 1000))


GOOD = [
    "manifest.json", "a/b/c", "Data/com.apple.CoreML/model.mlmodel", "a b", "ä/ö", "日本", "x..y",
    ".hidden", "console.txt", "com10", "auxiliary", "a" * 255, "/".join(["d" * 100] * 32),
]  # fmt: skip
BAD = [
    "", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "a//b", "a/",
    "a\\b", "..\\x", "C:", "C:/x", "c:x", "a:b", "\\\\host\\share", "a\0b", "\0", "a\nb", "a\x7f",
    "a\u202eb", "a\u200bb", "a\u2028b", "con", "CON", "nul.txt", "a/Aux/b", "com1", "LPT9.tar.gz",
    "COM\u00b9", "con .txt", "CONIN$", "a.", "a ", "a/b./c", "what?", "a*", "<a>", 'a"b', "a|b",
    "a" * 256, "ä" * 128, "/".join("a" * 33), "d/" * 2100 + "f",
]  # fmt: skip


def test_good_paths():
    check_paths(GOOD)
    check_paths([])


@pytest.mark.parametrize("path", BAD, ids=[ascii(path)[:20] for path in BAD])
def test_bad_paths(path):
    with refused(CODE.INVALID_ARGUMENT):
        check_paths(["manifest.json", path])


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"],
        ["a", "A"],
        ["manifest.json", "Manifest.JSON"],
        [NFC, NFD],
        ["straße", "STRASSE"],
        ["ﬁle", "file"],
        ["a", "a/b"],
        ["a/b", "A"],
        ["x/y/z", "x/y"],
        ["Data/a", "data/b"],
        [f"{NFC}/a", f"{NFD}/b"],
    ],
)
def test_paths_that_fall_together(paths):
    for order in (paths, paths[::-1]):
        with refused(CODE.INVALID_ARGUMENT):
            check_paths(order)


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=4))
def test_any_path_is_taken_or_refused_and_never_leaves(paths):
    try:
        check_paths(paths)
    except Refused as error:
        assert error.code is CODE.INVALID_ARGUMENT and str(error).isprintable()
        return
    for path in paths:
        parts = path.split("/")
        assert parts and all(p and p not in (".", "..") and "\\" not in p for p in parts)


def spoil(made, what):
    if what == "digest":
        made.digest = "0" * 64
    elif what == "upper digest":
        made.digest = made.digest.upper()
    elif what == "file sha256":
        made.files[0].sha256 = "zz"
    elif what == "size":
        made.files[0].size += 1
    elif what == "no manifest":
        del made.files[[f.path for f in made.files].index("manifest.json")]
    elif what == "no files":
        del made.files[:]
    elif what == "twice":
        made.files.add().CopyFrom(made.files[0])
    elif what == "path":
        made.files[0].path = "../" + made.files[0].path


WRONG = [
    "digest",
    "upper digest",
    "file sha256",
    "size",
    "no manifest",
    "no files",
    "twice",
    "path",
]


@pytest.mark.parametrize("what", [*WRONG, "path"])
def test_headers_that_can_never_be_right(source, what):
    made = header(source)
    assert header_of(made, Limits()).digest == plan_of(source).digest
    spoil(made, what)
    with refused(CODE.INVALID_ARGUMENT):
        header_of(made, Limits())


def test_headers_beyond_a_limit(source):
    made = header(source)
    made.files[0].size = 2**64 - 1
    with refused(CODE.RESOURCE_EXHAUSTED, f"{4 * GIB}"):
        header_of(made, Limits())
    files = [{"path": f"f{i}"} for i in range(10_001)]
    many = message("edgevit.v1.UploadHeader")(digest="0" * 64, files=files)
    with refused(CODE.RESOURCE_EXHAUSTED, "10001 files"):
        header_of(many, Limits())
    large = header(source)
    next(f for f in large.files if f.path == "manifest.json").size = 17 << 20
    with refused(CODE.RESOURCE_EXHAUSTED, "manifest.json has"):
        header_of(large, Limits())

"""Inputs that a device senses itself: which files are read, which are refused, and how."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from agent_tools import infer_request
from hypothesis import given, settings
from hypothesis import strategies as st
from server_tools import calls_of, refusal, run, served

from runtime.agent import AgentConfig, serve
from runtime.errors import RuntimeFault
from runtime.serving import inputs_folder
from runtime.serving.inputs_folder import HEAD_BYTES, InputsFolder
from runtime.serving.model import ModelSettings
from runtime.serving.models import Models
from runtime.serving.observer import NOBODY
from runtime.serving.services.inference import InferenceService
from runtime.serving.storage.store import Store
from runtime.tensor_spec import TensorSpec
from runtime.wire.descriptors import INFERENCE, message
from runtime.wire.input_ref import ABOUT_INPUT, put_input_ref
from runtime.wire.refused import ABOUT, Refused
from runtime.wire.tensors import read_outputs

SPEC = TensorSpec("image", [-1, 4, 6, 3], "float32", "NHWC")
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[InputsFolder]:
    (tmp_path / "inputs").mkdir()
    opened = InputsFolder(tmp_path / "inputs")
    yield opened
    opened.close()


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 4, 6, 3), dtype=np.float32)


def read(folder: InputsFolder, name: str = "camera", spec: TensorSpec = SPEC) -> Any:
    return asyncio.run(folder.read(name, spec))


def refused(folder: InputsFolder, spec: TensorSpec = SPEC) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(Refused) as caught:
        read(folder, spec=spec)
    assert caught.value.about == ABOUT_INPUT
    return caught.value.code, str(caught.value)


def replace(path: Path, x: np.ndarray) -> None:
    """As a sensor should."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, x)
    new.rename(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool"])
def test_what_numpy_saves_is_read(folder: InputsFolder, tmp_path: Path, dtype: str) -> None:
    x = (picture() * 2).astype(dtype)
    spec = TensorSpec("image", [-1, 4, 6, 3], dtype)
    for saved in (x, np.asfortranarray(x)):
        np.save(tmp_path / "inputs" / "camera.npy", saved)
        got, _ = read(folder, spec=spec)
        assert got.dtype == x.dtype and np.array_equal(got, x)
        assert got.flags.c_contiguous


def test_longer_headers_are_read(folder: InputsFolder, tmp_path: Path) -> None:
    """Version 2 and 3 of the format have a longer length."""
    for version in ((2, 0), (3, 0)):
        with (tmp_path / "inputs" / "camera.npy").open("wb") as file:
            np.lib.format.write_array(file, picture(), version=version)
        assert np.array_equal(read(folder)[0], picture())


def test_the_age_is_that_of_the_file(folder: InputsFolder, tmp_path: Path) -> None:
    path = tmp_path / "inputs" / "camera.npy"
    np.save(path, picture())
    assert 0 <= read(folder)[1] < 60_000_000
    now = time.time()
    os.utime(path, (now - 100, now - 100))
    assert 100_000_000 <= read(folder)[1] < 160_000_000
    os.utime(path, (now + 100, now + 100))  # by a clock that was set back
    assert read(folder)[1] == 0


def test_a_file_that_does_not_fit_is_refused(folder: InputsFolder, tmp_path: Path) -> None:
    path = tmp_path / "inputs" / "camera.npy"
    bad = picture()
    bad[0, 1, 2, 0] = np.inf
    for x, words in (
        (picture().astype(np.float64), "has '<f8' [1, 4, 6, 3]; expected one picture, '<f4'"),
        (picture().astype(">f4"), "has '>f4'"),
        (picture()[0], "expected one picture, '<f4' [1, 4, 6, 3] (NHWC)"),
        (np.repeat(picture(), 2, 0), "has '<f4' [2, 4, 6, 3]"),
        (np.zeros((1, 4, 0, 3), np.float32), "has '<f4' [1, 4, 0, 3]"),
        (np.array([{"a": 1}], dtype=object), "has '|O' [1]"),
        (np.zeros(2, [("a", "<f4")]), "no header of an array of plain numbers"),
        (bad, "has NaN or infinity"),
    ):
        np.save(path, x, allow_pickle=True)
        code, text = refused(folder)
        assert code is INVALID and words in text, text
        assert text.startswith("camera.npy in this agent's --inputs")


def test_a_bool_is_0_or_1(folder: InputsFolder, tmp_path: Path) -> None:
    x = np.full((1, 4, 6, 3), 2, np.uint8).view(np.bool_)
    np.save(tmp_path / "inputs" / "camera.npy", x)
    code, text = refused(folder, TensorSpec("image", [-1, 4, 6, 3], "bool"))
    assert code is INVALID and "neither 0 nor 1" in text


def test_a_part_of_a_file_is_refused_at_any_length(folder: InputsFolder, tmp_path: Path) -> None:
    path = tmp_path / "inputs" / "camera.npy"
    np.save(path, picture())
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert refused(folder)[0] is INVALID
    path.write_bytes(whole + b"x")
    assert "bytes: more;" in refused(folder)[1]
    path.write_bytes(whole)
    assert np.array_equal(read(folder)[0], picture())


def header(text: str, version: int = 1) -> bytes:
    data = text.encode("latin1")
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(data).to_bytes(width, "little") + data


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04" + bytes(200),  # an .npz
        b"\x80\x04\x95" + bytes(200),  # a pickle
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 6, 3)}", 9),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 6, 3.0)}") + bytes(288),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4, 6, 3)}") + bytes(288),
        header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 4, 6, 3)}") + bytes(288),
        header("{'descr': '<f4', 'shape': (1, 4, 6, 3)}") + bytes(288),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000,)}"),
        header("__import__('os').abort()"),
        header("(" * 3000),
        header("-" * 3000 + "1"),
        header("[" * 1500 + "]" * 1500),
        header(" " * 20_000 + "{}"),
        header(" " * (HEAD_BYTES + 1), 2),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        header("\x00"),
        header("[1]"),
    ],
    ids=str,
)
def test_no_header_does_harm(folder: InputsFolder, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "inputs" / "camera.npy").write_bytes(data)
    assert refused(folder)[0] is INVALID


@given(at=st.integers(0, 127), junk=st.binary(min_size=1, max_size=4), length=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_damaged_headers(at: int, junk: bytes, length: int, tmp_path_factory: Any) -> None:
    """Whatever stands there, it is refused, or it was blank."""
    home = tmp_path_factory.getbasetemp() / "damaged"
    home.mkdir(exist_ok=True)
    np.save(home / "camera.npy", picture())
    data = (home / "camera.npy").read_bytes()
    (home / "camera.npy").write_bytes(data[:at] + junk + data[at + length :])
    folder = InputsFolder(home)
    try:
        assert np.array_equal(read(folder)[0], picture())
    except Refused as error:
        assert error.code is INVALID
    finally:
        folder.close()


def test_only_plain_files_are_read(folder: InputsFolder, tmp_path: Path) -> None:
    inputs, outside = tmp_path / "inputs", tmp_path / "outside.npy"
    path = inputs / "camera.npy"
    code, text = refused(folder)
    assert code is NOT_FOUND and "no camera.npy in this agent's --inputs" in text
    np.save(outside, picture())
    for target in (outside, tmp_path / "nowhere", Path("other.npy")):
        path.symlink_to(target)
        code, text = refused(folder)
        assert code is INVALID and "is a link" in text
        path.unlink()
    path.mkdir()
    assert "no plain file" in refused(folder)[1]
    path.rmdir()
    os.mkfifo(path)  # which a reader could wait at for ever
    assert "no plain file" in refused(folder)[1]


def test_nothing_stays_open(folder: InputsFolder, tmp_path: Path) -> None:
    path = tmp_path / "inputs" / "camera.npy"

    def opened() -> int:
        return psutil.Process().num_fds()

    np.save(path, picture())
    before = opened()
    for _ in range(3):
        read(folder)
    assert opened() == before
    path.write_bytes(b"no array")
    refused(folder)
    assert opened() == before
    path.unlink()
    path.mkdir()
    refused(folder)
    assert opened() == before


def test_a_folder_that_is_a_file_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    gone = InputsFolder(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("a file now")
    code, text = refused(gone)
    gone.close()
    assert code is PRECONDITION and "cannot read camera.npy" in text


def test_a_file_that_is_written_in_place_is_refused(
    folder: InputsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its header and its end."""
    path = tmp_path / "inputs" / "camera.npy"
    np.save(path, picture())
    os.utime(path, (1, 1))
    pread = os.pread

    def then_write(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        with path.open("r+b") as file:
            file.seek(200)
            file.write(b"abcd")
        return data

    monkeypatch.setattr(inputs_folder.os, "pread", then_write)
    assert "written to while it was read" in refused(folder)[1]


@contextmanager
def alternating(path: Path, pictures: list[np.ndarray]) -> Iterator[None]:
    """Another thread replaces the file as fast as it can."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for x in pictures:
                replace(path, x)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def test_a_file_that_is_replaced_is_never_half(folder: InputsFolder, tmp_path: Path) -> None:
    """Large enough to be read in more than one piece; each picture is of one number."""
    spec = TensorSpec("image", [1, 3, 224, 224], "float32")
    path = tmp_path / "inputs" / "camera.npy"
    both = [np.full(spec.shape, value, np.float32) for value in (1, 2)]
    replace(path, both[0])
    seen = set()

    async def work() -> None:
        for _ in range(500):
            x, _ = await folder.read("camera", spec)
            assert x.min() == x.max()
            seen.add(float(x.max()))

    with alternating(path, both):
        run(work())
    assert seen == {1.0, 2.0}


def test_a_picture_stays_as_it_was_read(folder: InputsFolder, tmp_path: Path) -> None:
    """Whatever is read after it, by then perhaps while an engine still has it."""
    path = tmp_path / "inputs" / "camera.npy"
    first, second = picture(), picture() + 1
    replace(path, first)
    x, _ = read(folder)
    replace(path, second)
    y, _ = read(folder)
    np.testing.assert_array_equal(x, first)
    np.testing.assert_array_equal(y, second)


# With a model, over a server


@asynccontextmanager
async def serving(store: Store, inputs: InputsFolder | None) -> AsyncIterator[Any]:
    models = Models(store, ModelSettings(isolate=False), NOBODY)
    service = InferenceService(models, NOBODY, lambda: True, inputs)
    try:
        await models.load("tiny")
        async with served({INFERENCE: service}) as channel:
            yield calls_of(channel, INFERENCE)
    finally:
        await models.close(5)


@pytest.fixture
def store(tmp_path: Path, make_bundle: Any) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store")
    opened.add(make_bundle("tflite"), "tiny")
    yield opened
    opened.close()


def named(name: str = "camera", model: str = "tiny") -> Any:
    request = message("inference.ModelInferRequest")(model_name=model)
    put_input_ref(request, name)
    return request


def test_an_answer_to_a_name_is_that_to_the_picture(
    store: Store, folder: InputsFolder, tmp_path: Path, tiny: Any
) -> None:
    async def work() -> None:
        async with serving(store, folder) as ask:
            (spec,) = (await ask("ModelMetadata", name="tiny")).inputs
            for index in range(len(tiny.inputs_NHWC)):
                x = tiny.input_for("tflite", index)
                replace(tmp_path / "inputs" / "camera.npy", x)
                sent = await ask("ModelInfer", infer_request("tiny", spec.name, x))
                assert "input_age_us" not in sent.parameters
                sensed = await ask("ModelInfer", named())
                (expected,) = read_outputs(sent).values()
                (got,) = read_outputs(sensed).values()
                assert np.array_equal(got, expected)
                np.testing.assert_allclose(got, tiny.outputs_NK[index : index + 1], atol=1e-4)
                assert 0 <= sensed.parameters["input_age_us"].int64_param < 60_000_000

    run(work())


def test_what_an_agent_refuses(
    store: Store, folder: InputsFolder, tmp_path: Path, tiny: Any
) -> None:
    async def refusals(ask: Any, *requests: Any) -> list[tuple[grpc.StatusCode, str]]:
        return [await refusal(ask("ModelInfer", request)) for request in requests]

    both = infer_request("tiny", "image", tiny.input_for("tflite"))
    put_input_ref(both, "camera")
    number = named()
    number.parameters["input_ref"].int64_param = 3
    names = [
        "",
        ".",
        "..",
        "../store",
        "a/b",
        "/etc/passwd",
        "a\n",
        "a\0",
        ".hidden",
        "é",
        "a" * 129,
    ]

    async def work() -> None:
        async with serving(store, folder) as ask:
            for code, text in await refusals(ask, both, number, *map(named, names)):
                assert code is INVALID and "input_ref" in text, text
            ((code, text),) = await refusals(ask, named("not-there"))
            assert code is NOT_FOUND and "no not-there.npy" in text
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask("ModelInfer", named("not-there"))
            assert dict(caught.value.trailing_metadata())[ABOUT] == ABOUT_INPUT
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask("ModelInfer", named(model="no-model"))
            assert caught.value.code() is NOT_FOUND
            assert ABOUT not in dict(caught.value.trailing_metadata())
        async with serving(store, None) as ask:
            ((code, text),) = await refusals(ask, named())
            assert code is PRECONDITION and "start it with --inputs DIR" in text

    run(work())


def test_a_slow_folder_stops_nobody_else(
    store: Store, folder: InputsFolder, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a network that hangs: the event loop and other requests go on."""
    hung = threading.Event()
    fstat = os.fstat

    def hang(descriptor: int) -> os.stat_result:
        if threading.current_thread().name.startswith("inputs"):
            hung.wait(60)
        return fstat(descriptor)

    monkeypatch.setattr(inputs_folder.os, "fstat", hang)
    monkeypatch.setattr(inputs_folder, "READ_S", 0.5)
    replace(tmp_path / "inputs" / "camera.npy", tiny.input_for("tflite"))

    async def work() -> None:
        async with serving(store, folder) as ask:
            (spec,) = (await ask("ModelMetadata", name="tiny")).inputs
            waiting = [asyncio.create_task(refusal(ask("ModelInfer", named()))) for _ in range(20)]
            code, _ = await refusal(ask("ModelInfer", named(), timeout=0.1))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            x = tiny.input_for("tflite")
            await ask("ModelInfer", infer_request("tiny", spec.name, x))
            for code, text in await asyncio.gather(*waiting):
                assert code is PRECONDITION and "could not be read within 0.5 s" in text
            assert await asyncio.to_thread(lambda: True)
            hung.set()
            assert "input_age_us" in (await ask("ModelInfer", named())).parameters

    run(work())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    config = AgentConfig(tmp_path / "store", listen="127.0.0.1:0", inputs=tmp_path / "no-folder")
    with pytest.raises(RuntimeFault, match="no-folder: expected a folder"):
        asyncio.run(serve(config))
    said = subprocess.run(
        [sys.executable, "-m", "edgevit", "agent", "--store", str(tmp_path / "s"), "--listen",
         "127.0.0.1:0", "--inputs", str(tmp_path / "no-folder")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert said.returncode == 2 and "expected a folder" in said.stderr
    assert "Traceback" not in said.stderr

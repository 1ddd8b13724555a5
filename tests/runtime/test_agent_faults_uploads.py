"""Uploads that break off, lie or do not fit: nothing of them is ever visible, the agent goes on."""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import (
    Agent,
    ask,
    channel_to,
    eventually,
    infer_request,
    input_name,
    refusal,
    running_agent,
    upload_parts,
)
from cli_tools import edgevit, small_disk

from runtime.client import AgentClient
from runtime.digest import sha256_tree, size_of
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import DEVICE, methods
from runtime.wire.service import call
from runtime.wire.tensors import read_outputs

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
LOST = grpc.StatusCode.DATA_LOSS
BEFORE = grpc.StatusCode.FAILED_PRECONDITION


def upload(channel: Any, parts: Iterator[Any]) -> Any:
    return call(channel, methods(DEVICE)["UploadBundle"])(parts, timeout=60)


def cut_off(channel: Any, folder: Path, name: str, count: int) -> None:
    """Send `count` parts of a bundle, then go away in the middle of the stream."""
    digest, parts = sha256_tree(folder), upload_parts(folder, name)
    sent, gone = threading.Event(), threading.Event()

    def some() -> Iterator[Any]:
        yield from itertools.islice(parts, count)
        sent.set()
        gone.wait(60)

    running = call(channel, methods(DEVICE)["UploadBundle"]).future(some(), timeout=60)
    assert sent.wait(60)
    eventually(lambda: held(channel, digest).held)  # what is still on the way goes with the call
    running.cancel()
    gone.set()
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        running.result()
    # Until the agent has noticed, the bundle is in somebody else's hands.
    header = list(itertools.islice(upload_parts(folder, "over"), 1))
    busy = grpc.StatusCode.ABORTED
    eventually(lambda: refusal(lambda: upload(channel, iter(header)))[0] != busy)


def held(channel: Any, digest: str) -> Any:
    return ask(channel, "UploadStatus", of=DEVICE, digest=digest)


def bundles(channel: Any) -> list[str]:
    return [b.digest for b in ask(channel, "Describe", of=DEVICE).bundles]


def assert_answers(channel: Any, model: str, tiny: Any) -> None:
    """The model that was uploaded gives torch's numbers."""
    ask(channel, "RepositoryModelLoad", model_name=model)
    request = infer_request(model, input_name(channel, model), tiny.input_for("tflite"))
    (output,) = read_outputs(ask(channel, "ModelInfer", request)).values()
    np.testing.assert_allclose(output[0], tiny.outputs_NK[0], atol=1e-5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the agent's store is; nothing else may appear there."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def agent(home: Path) -> Iterator[Agent]:
    with running_agent(home / "store") as agent:
        yield agent


@pytest.fixture(scope="module")
def channel(agent: Agent) -> Iterator[Any]:
    with channel_to(agent.address) as channel:
        yield channel


@pytest.fixture
def sent(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny network in a bundle that no other test sends."""
    made = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    (made / "notes.txt").write_text(str(tmp_path))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_an_upload_cut_anywhere_is_resumed(
    agent: Agent, channel: Any, tiny: Any, sent: Path, seed: int
) -> None:
    digest, size = sha256_tree(sent), size_of(sent)
    parts = len(list(upload_parts(sent, "cut")))
    count = random.Random(seed).randrange(3, parts - 1)
    cut_off(channel, sent, "cut", count)

    assert sha256_tree(sent) not in bundles(channel)
    status = held(channel, digest)
    assert not status.complete
    assert 0 < sum(h.bytes for h in status.held) <= (count - 1) * 4096

    with AgentClient(agent.address) as client:
        assert client.upload(sent, "cut") == digest
    assert digest in bundles(channel)
    assert held(channel, digest).complete
    answer = upload(channel, upload_parts(sent, "cut"))
    assert answer.was_complete and answer.received < size
    assert_answers(channel, "cut", tiny)


def test_what_a_resumed_upload_sends_is_the_rest(channel: Any, tiny: Any, sent: Path) -> None:
    digest, size = sha256_tree(sent), size_of(sent)
    cut_off(channel, sent, "rest", 9)
    have = {h.path: h.bytes for h in held(channel, digest).held}
    answer = upload(channel, upload_parts(sent, "rest", skip=have))
    assert answer.digest == digest and answer.received == size - sum(have.values()) < size
    assert_answers(channel, "rest", tiny)


def test_an_upload_survives_the_agent(tmp_path: Path, tiny: Any, sent: Path) -> None:
    """SIGKILL after half an upload; the next agent goes on with what came, or from the start."""
    store, digest = tmp_path / "store", sha256_tree(sent)
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        cut_off(channel, sent, "again", 12)
        agent.kill()
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        assert sha256_tree(sent) not in bundles(channel)
        with AgentClient(agent.address) as client:
            assert client.upload(sent, "again") == digest
        assert_answers(channel, "again", tiny)


def test_a_chunk_with_another_sha(channel: Any, sent: Path) -> None:
    def parts() -> Iterator[Any]:
        for number, part in enumerate(upload_parts(sent, "sha")):
            if number == 4:
                part.chunk.sha256 = hashlib.sha256(b"other").digest()
            yield part

    code, text = refusal(lambda: upload(channel, parts()))
    assert code == LOST and "sha256" in text
    assert sha256_tree(sent) not in bundles(channel)


def test_a_file_with_another_sha_than_the_header_says(channel: Any, sent: Path) -> None:
    """Every chunk is right by itself, the whole is not what was announced."""

    def parts() -> Iterator[Any]:
        for number, part in enumerate(upload_parts(sent, "sha")):
            if number == 4:
                part.chunk.data = bytes(reversed(part.chunk.data))
                part.chunk.sha256 = hashlib.sha256(part.chunk.data).digest()
            yield part

    assert refusal(lambda: upload(channel, parts()))[0] == LOST
    assert sha256_tree(sent) not in bundles(channel)


def test_a_digest_of_another_bundle(channel: Any, sent: Path) -> None:
    code, text = refusal(lambda: upload(channel, upload_parts(sent, "x", digest="0" * 64)))
    assert code in (LOST, INVALID) and "digest" in text
    assert sha256_tree(sent) not in bundles(channel)


@pytest.mark.parametrize(
    "path",
    [
        "../manifest.json", "/etc/cron.d/evil", "a/../../evil", "..", "a\\..\\evil", "C:evil",
        "a\0b", "", ".", "a//b", "MANIFEST.JSON", "a" * 5000, "con/../x", "./x", "a/", "\n",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_bundle(home: Path, channel: Any, sent: Path, path: str) -> None:
    """Also names that two systems read differently; one file of the bundle is called so."""
    parts = upload_parts(sent, "evil", paths={"reference.npz": path})
    code, text = refusal(lambda: upload(channel, parts))
    assert code == INVALID, (code, text)
    assert sha256_tree(sent) not in bundles(channel)
    assert [p.name for p in home.iterdir()] == ["store"]
    assert not list(home.rglob("*evil*")) and not Path("/etc/cron.d/evil").exists()


@pytest.mark.parametrize("name", ["../up", "/abs", ".hidden", "a/b", "x" * 200, "a b", "é", "\0"])
def test_a_name_that_is_none(channel: Any, sent: Path, name: str) -> None:
    assert refusal(lambda: upload(channel, upload_parts(sent, name)))[0] == INVALID
    assert sha256_tree(sent) not in bundles(channel)


def test_no_name_is_the_name_of_the_model(channel: Any, sent: Path) -> None:
    assert upload(channel, upload_parts(sent, "")).name == "tiny"


def test_a_file_that_is_also_a_folder(channel: Any, sent: Path) -> None:
    """On disk the one could only be made through the other, or through a link."""
    parts = upload_parts(sent, "both", paths={"reference.npz": "manifest.json/x"})
    assert refusal(lambda: upload(channel, parts))[0] == INVALID
    assert sha256_tree(sent) not in bundles(channel)


def test_a_link_in_the_bundle(agent: Agent, channel: Any, sent: Path, tmp_path: Path) -> None:
    """A client does not follow it, nor does an agent that is told to load the folder."""
    secret, before = tmp_path / "secret", bundles(channel)
    secret.write_text("not yours")
    (sent / "labels.txt").symlink_to(secret)
    with AgentClient(agent.address) as client, pytest.raises(RuntimeFault, match="link"):
        client.upload(sent)
    assert bundles(channel) == before
    words = ["--listen", "127.0.0.1:0", "--store", "other", "--load", sent]
    answer = edgevit("agent", *words, cwd=tmp_path, timeout=60)
    assert answer.code == 2 and "link" in answer.err
    assert not list((tmp_path / "other").rglob("labels.txt"))


def test_a_link_that_was_put_into_the_store(tmp_path: Path, sent: Path) -> None:
    """Somebody with access to the disk swaps a file for a link: it is not served."""
    store = tmp_path / "store"
    with running_agent(store, load=[sent]):
        pass
    (artifact,) = store.rglob("tiny.tflite")
    elsewhere = shutil.move(artifact, tmp_path / "elsewhere.tflite")
    artifact.symlink_to(elsewhere)
    with running_agent(store) as agent, channel_to(agent.address) as channel:
        assert not ask(channel, "ModelReady", name="tiny/tflite").ready
        code, _ = refusal(lambda: ask(channel, "RepositoryModelLoad", model_name="tiny/tflite"))
        assert code != grpc.StatusCode.INTERNAL


def test_chunks_out_of_place(channel: Any, sent: Path) -> None:
    def changed(**fields: Any) -> Iterator[Any]:
        for number, part in enumerate(upload_parts(sent, "odd")):
            if number == 3:
                for name, value in fields.items():
                    setattr(part.chunk, name, value)
            yield part

    for fields in ({"file": 999}, {"offset": 2**50}, {"offset": 1}, {"sha256": b"short"}):
        code, text = refusal(lambda fields=fields: upload(channel, changed(**fields)))
        # BEFORE: the bytes of an attempt before this one are there already.
        assert code in (INVALID, LOST, BEFORE), (fields, code, text)
    no_header = list(upload_parts(sent, "odd"))[1:]
    assert refusal(lambda: upload(channel, iter(no_header)))[0] == INVALID
    two = [next(upload_parts(sent, "odd"))] * 2
    assert refusal(lambda: upload(channel, iter(two)))[0] == INVALID
    assert refusal(lambda: upload(channel, iter(())))[0] == INVALID
    half = list(upload_parts(sent, "odd"))[:-1]
    assert refusal(lambda: upload(channel, iter(half)))[0] in (INVALID, LOST, BEFORE)
    assert sha256_tree(sent) not in bundles(channel)


def test_sizes_that_are_lies(channel: Any, sent: Path) -> None:
    for size in (2**63, 2**50, 0, 10):
        header = next(upload_parts(sent, "sizes"))
        header.header.files[0].size = size
        rest = list(upload_parts(sent, "sizes"))[1:]
        code, _ = refusal(lambda parts=(header, *rest): upload(channel, iter(parts)))
        assert code in (INVALID, FULL, LOST), size
    many = next(upload_parts(sent, "many"))
    for number in range(20_000):
        many.header.files.add(path=f"f{number}", size=1, sha256="0" * 64)
    assert refusal(lambda: upload(channel, iter([many])))[0] in (INVALID, FULL)
    assert sha256_tree(sent) not in bundles(channel)


def test_over_the_quota(tmp_path: Path, tiny: Any, sent: Path) -> None:
    quota = size_of(sent) * 3 // 2
    with (
        running_agent(tmp_path / "store", "--quota", quota) as agent,
        channel_to(agent.address) as channel,
    ):
        upload(channel, upload_parts(sent, "first"))
        second = Path(shutil.copytree(sent, tmp_path / "second"))
        (second / "labels.txt").write_text("one\n" * 7)
        code, text = refusal(lambda: upload(channel, upload_parts(second, "second")))
        assert code == FULL and "quota" in text
        assert bundles(channel) == [sha256_tree(sent)]
        ask(channel, "Remove", of=DEVICE, bundle="first")
        upload(channel, upload_parts(second, "second"))
        assert_answers(channel, "second", tiny)


def test_a_disk_that_fills_up(tmp_path: Path, tiny: Any, sent: Path) -> None:
    """Full while the chunks come in; with room again the same upload goes through."""
    filler, room = tmp_path / "disk" / "filler", 4 * size_of(sent) + 2**20

    def parts() -> Iterator[Any]:
        for number, part in enumerate(upload_parts(sent, "full")):
            if number == 5:
                fill(filler)
            yield part

    try:
        with (
            small_disk(tmp_path / "disk", str(room)) as disk,
            running_agent(disk / "store") as agent,
            channel_to(agent.address) as channel,
        ):
            code, text = refusal(lambda: upload(channel, parts()))
            assert code == FULL and ("space" in text or "disk" in text), text
            assert sha256_tree(sent) not in bundles(channel)
            filler.unlink()
            with AgentClient(agent.address) as client:  # which goes on where the disk was full
                assert client.upload(sent, "full") == sha256_tree(sent)
            assert_answers(channel, "full", tiny)
    except PermissionError as error:
        pytest.skip(str(error))


def fill(file: Path) -> None:
    """Write until the disk has no room for another byte."""
    with file.open("wb", buffering=0) as out:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    out.write(bytes(size))
            except OSError:
                continue

"""Small servers of the real services, in a thread: they answer as an agent would, or as told."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from runtime.digest import sha256_tree
from runtime.environment import describe
from runtime.manifest import Manifest, ModelInfo, Preprocessing, ReparamProof
from runtime.tensor_spec import TensorSpec
from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE, Message, message
from runtime.wire.refused import Refused, exhausted, invalid, not_found, unavailable
from runtime.wire.service import handler
from runtime.wire.tensors import decode, put_output

MESSAGE_BYTES = 8 << 20
SPEC = TensorSpec(name="x", shape=[-1, 4], dtype="float32")


class Doubles:
    """An inference service with one model that doubles its input.

    `failures` are answered before anything else, one a call; `seen` counts the calls by name.
    """

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.seen: list[str] = []
        self.input = "x"
        self.ready = True
        self.loaded: dict[str, dict[str, int]] = {}
        self.metadata: list[tuple[str, str]] = []
        self.waiting = threading.Event()
        self.cancelled = threading.Event()

    def _note(self, name: str, context: Any) -> None:
        self.seen.append(name)
        self.metadata = list(context.invocation_metadata())
        if self.failures:
            raise self.failures.pop(0)

    async def _wait(self, request: Message) -> None:
        """The model 'wait' takes longer than any test."""
        if request.model_name == "wait":
            self.waiting.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def ServerLive(self, request: Message, context: Any) -> Message:
        self._note("ServerLive", context)
        return message("inference.ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Message, context: Any) -> Message:
        return message("inference.ServerReadyResponse")(ready=self.ready)

    async def ServerMetadata(self, request: Message, context: Any) -> Message:
        return message("inference.ServerMetadataResponse")(
            name="small", version="1", extensions=["model_repository"]
        )

    async def ModelReady(self, request: Message, context: Any) -> Message:
        return message("inference.ModelReadyResponse")(ready=request.name == "double")

    async def ModelMetadata(self, request: Message, context: Any) -> Message:
        self._note("ModelMetadata", context)
        answer = message("inference.ModelMetadataResponse")(
            name=request.name, versions=["1"], platform="small", properties={"trained": "true"}
        )
        answer.inputs.add(name=self.input, datatype="FP32", shape=[-1, 4])
        answer.outputs.add(name="y", datatype="FP32", shape=[-1, 4])
        return answer

    async def ModelInfer(self, request: Message, context: Any) -> Message:
        self._note("ModelInfer", context)
        await self._wait(request)
        spec = TensorSpec(name=self.input, shape=SPEC.shape, dtype=SPEC.dtype)
        (x,) = decode(request, [spec])
        answer = message("inference.ModelInferResponse")(model_name="double", model_version="1")
        put_output(answer, "y", 2 * x)
        for name, value in {"queue_us": 5, "compute_us": 70, "batch_size": 2}.items():
            answer.parameters[name].int64_param = value
        answer.parameters["engine"].string_param = "none"
        return answer

    async def RepositoryIndex(self, request: Message, context: Any) -> Message:
        answer = message("inference.RepositoryIndexResponse")()
        answer.models.add(name="double", version="1", state="READY")
        if not request.ready:
            answer.models.add(name="broken", state="UNAVAILABLE", reason="its engine is not here")
        return answer

    async def RepositoryModelLoad(self, request: Message, context: Any) -> Message:
        self._note("RepositoryModelLoad", context)
        await self._wait(request)
        given = {name: value.int64_param for name, value in request.parameters.items()}
        self.loaded[request.model_name] = given
        return message("inference.RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Message, context: Any) -> Message:
        if self.loaded.pop(request.model_name, None) is None:
            raise not_found(f"no model '{request.model_name}' is loaded")
        return message("inference.RepositoryModelUnloadResponse")()


class Shelf:
    """A device service that takes bundles into a folder, file by file, as the protocol says.

    `cuts` are chunk counts after which an upload is ended with UNAVAILABLE, one an upload; `room`
    is the bytes of the largest bundle it takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuts: list[int] = []
        self.names: dict[str, set[str]] = {}
        self.whole: set[str] = set()
        self.uploads: list[int] = []  # bytes that came with each
        self.profile: list[Message] = []
        self.asked: list[Message] = []
        self.hostname = "small"
        self.room = 1 << 40

    async def Describe(self, request: Message, context: Any) -> Message:
        environment = describe().model_copy(update={"hostname": self.hostname})
        answer = message("edgevit.v1.DescribeResponse")(
            edgevit_version="1.2.3", device_id="an-id", generation=7, clock_unix_ns=5_000_000_000,
            environment_json=environment.model_dump_json(exclude_none=True), memory_total=1000,
        )  # fmt: skip
        answer.engines.add(name="litert", target="tflite", version="2.3.0", available=True)
        answer.bundles.add(digest="d", names=["a", "b"], size=9, targets=["tflite"])
        answer.limits.message_bytes = MESSAGE_BYTES
        return answer

    async def UploadStatus(self, request: Message, context: Any) -> Message:
        answer = message("edgevit.v1.UploadStatusResponse")(
            complete=request.digest in self.whole, names=self.names.get(request.digest, set())
        )
        at = self.folder / request.digest
        for file in sorted(at.rglob("*")):
            if file.is_file():
                path = file.relative_to(at).as_posix()
                answer.held.add(path=path, bytes=file.stat().st_size)
        return answer

    async def UploadBundle(self, parts: AsyncIterator[Message], context: Any) -> Message:
        header, came, cut = None, 0, self.cuts.pop(0) if self.cuts else None
        self.uploads.append(0)
        async for part in parts:
            if part.HasField("header"):
                header = part.header
                if sum(file.size for file in header.files) > self.room:
                    raise exhausted("the disk is full")
                for file in header.files:  # an empty one has no chunk
                    path = self.folder / header.digest / file.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                continue
            if cut is not None and came >= cut:
                raise unavailable("the network went away")
            self._write(header, part.chunk)
            came += 1
            self.uploads[-1] += len(part.chunk.data)
        assert header is not None
        if header.digest not in self.whole and sha256_tree(self.folder / header.digest) != (
            header.digest
        ):
            raise Refused(grpc.StatusCode.DATA_LOSS, "the folder has another digest")
        self.whole.add(header.digest)
        self.names.setdefault(header.digest, set()).add(header.name or "its-model")
        return message("edgevit.v1.UploadResponse")(name=header.name, digest=header.digest)

    def _write(self, header: Message, chunk: Message) -> None:
        path = self.folder / header.digest / header.files[chunk.file].path
        if chunk.offset != path.stat().st_size:
            raise invalid(f"expected offset {path.stat().st_size}, got {chunk.offset}")
        if hashlib.sha256(chunk.data).digest() != chunk.sha256:
            raise Refused(grpc.StatusCode.DATA_LOSS, "a chunk has another sha256")
        with path.open("ab") as file:
            file.write(chunk.data)

    async def Profile(self, request: Message, context: Any) -> AsyncIterator[Message]:
        self.asked.append(request)
        for part in self.profile:
            yield part

    async def Remove(self, request: Message, context: Any) -> Message:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION, f"{request.bundle} is loaded; unload it first"
        )


class Pulse:
    """grpc.health.v1 of a server without models."""

    async def Check(self, request: Message, context: Any) -> Message:
        if request.service not in ("", "double"):
            raise not_found(f"no service '{request.service}'")
        return message("grpc.health.v1.HealthCheckResponse")(status=1)


@contextmanager
def serving(
    services: dict[str, object],
    credentials: grpc.ServerCredentials | None = None,
    port: int = 0,
) -> Iterator[str]:
    """A grpc.aio server with these services in a thread of its own; its address."""
    started: list[Any] = []
    up = threading.Event()

    async def run() -> None:
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
        )
        server.add_generic_rpc_handlers(tuple(handler(n, s) for n, s in services.items()))
        where = f"127.0.0.1:{port}"
        bound = (
            server.add_insecure_port(where)
            if credentials is None
            else server.add_secure_port(where, credentials)
        )
        await server.start()
        over = asyncio.Event()
        started.extend([bound, asyncio.get_running_loop(), over])
        up.set()
        await over.wait()
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert up.wait(30), "the server did not start"
    bound, loop, over = started
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


def small_services(folder: Path) -> dict[str, Any]:
    """Everything an agent has, small."""
    return {INFERENCE: Doubles(), DEVICE: Shelf(folder), HEALTH: Pulse()}


def small_bundle(folder: Path, size: int = 3_000_000) -> Path:
    """A bundle without artefacts: a manifest and files of noise, one of them in a folder."""
    folder.mkdir()
    noise = np.random.default_rng(0).bytes(size)
    (folder / "reference.npz").write_bytes(noise[: size // 3])
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(noise[size // 3 :])
    (folder / "empty.txt").write_bytes(b"")
    manifest = Manifest(
        edgevit_version="0.1.0",
        created="2026-11-21T00:00:00+00:00",
        model=ModelInfo(
            ref="small/net:a", num_classes=3, weights="random", weights_sha256="0", trained=False
        ),
        preprocessing=Preprocessing(
            mean=[0.5] * 3, std=[0.5] * 3, height=8, width=8, crop_pct=1.0, interpolation="bicubic"
        ),
        classes=3,
        reference_sha256="0",
        reparam=ReparamProof(
            rules={}, params_before=1, params_after=1, macs_before=1, macs_after=1, nodes_before=1,
            nodes_after=1, max_rel_float64=0, max_rel_float32=0, gate_float64=1, gate_float32=1,
            inputs=1,
        ),
        artifacts={},
        timings_s={},
        machine={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder

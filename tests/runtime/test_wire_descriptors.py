"""The compiled descriptors: as the .proto files say, in a pool of their own, with known numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from runtime.wire import descriptors
from runtime.wire.descriptors import (
    DEVICE,
    HEALTH,
    INFERENCE,
    REFLECTION,
    REFLECTION_ALPHA,
    SERVICES,
    message,
    methods,
    pool,
)

PROTOS = Path(descriptors.__file__).with_name("protos")

# Field numbers of the public protocols, which every other client has compiled in.
NUMBERS = {
    "inference.ModelInferRequest": {
        "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "inputs": 5, "outputs": 6,
        "raw_input_contents": 7,
    },
    "inference.ModelInferRequest.InferInputTensor": {
        "name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5,
    },
    "inference.ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "inference.ModelInferResponse": {
        "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "outputs": 5,
        "raw_output_contents": 6,
    },
    "inference.ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
    "inference.ModelMetadataResponse": {
        "name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5, "properties": 6,
    },
    "inference.InferParameter": {
        "bool_param": 1, "int64_param": 2, "string_param": 3, "double_param": 4, "uint64_param": 5,
    },
    "inference.InferTensorContents": {
        "bool_contents": 1, "int_contents": 2, "int64_contents": 3, "uint_contents": 4,
        "uint64_contents": 5, "fp32_contents": 6, "fp64_contents": 7, "bytes_contents": 8,
    },
    "inference.RepositoryIndexResponse.ModelIndex": {
        "name": 1, "version": 2, "state": 3, "reason": 4,
    },
    "inference.RepositoryModelLoadRequest": {
        "repository_name": 1, "model_name": 2, "parameters": 3,
    },
    "inference.ModelRepositoryParameter": {
        "bool_param": 1, "int64_param": 2, "string_param": 3, "bytes_param": 4,
    },
    "grpc.health.v1.HealthCheckRequest": {"service": 1},
    "grpc.health.v1.HealthCheckResponse": {"status": 1},
    "grpc.reflection.v1alpha.ServerReflectionRequest": {
        "host": 1, "file_by_filename": 3, "file_containing_symbol": 4,
        "file_containing_extension": 5, "all_extension_numbers_of_type": 6, "list_services": 7,
    },
}  # fmt: skip

CALLS = {
    INFERENCE: [
        "ModelInfer", "ModelMetadata", "ModelReady", "ModelStreamInfer", "RepositoryIndex",
        "RepositoryModelLoad", "RepositoryModelUnload", "ServerLive", "ServerMetadata",
        "ServerReady",
    ],
    DEVICE: ["Describe", "Profile", "Remove", "UploadBundle", "UploadStatus"],
    HEALTH: ["Check", "Watch"],
    REFLECTION: ["ServerReflectionInfo"],
    REFLECTION_ALPHA: ["ServerReflectionInfo"],
}  # fmt: skip


def test_the_compiled_file_is_what_the_protos_say(tmp_path):
    """`make protos` was run after the last change of a .proto file."""
    made = tmp_path / "made.binpb"
    files = sorted(str(file) for file in PROTOS.glob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}",
         f"--descriptor_set_out={made}", *files],
        check=True, timeout=60,
    )  # fmt: skip
    kept = _files(descriptors.FILE)
    assert kept == _files(made)
    assert len(kept) == len(files) == 4


def _files(path: Path) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    return {file.name: file for file in found.file}


@pytest.mark.parametrize("name", NUMBERS)
def test_field_numbers_are_those_of_the_public_protocol(name):
    fields = pool().FindMessageTypeByName(name).fields
    assert {field.name: field.number for field in fields} == NUMBERS[name]


@pytest.mark.parametrize("service", SERVICES)
def test_the_calls_of_each_service(service):
    table = methods(service)
    assert sorted(table) == CALLS[service]
    for name, method in table.items():
        assert method.path == f"/{service}/{name}"


@pytest.mark.parametrize(
    ("service", "name", "client", "server"),
    [
        (INFERENCE, "ModelInfer", False, False),
        (DEVICE, "UploadBundle", True, False),
        (DEVICE, "Profile", False, True),
        (HEALTH, "Watch", False, True),
        (REFLECTION_ALPHA, "ServerReflectionInfo", True, True),
    ],
)
def test_which_calls_stream(service, name, client, server):
    method = methods(service)[name]
    assert (method.client_streaming, method.server_streaming) == (client, server)


def test_the_old_reflection_names_nothing_of_the_new_one():
    old = methods(REFLECTION_ALPHA)["ServerReflectionInfo"]
    text = descriptor_pb2.FileDescriptorProto()
    pool().FindServiceByName(REFLECTION_ALPHA).file.CopyToProto(text)
    assert "grpc.reflection.v1." not in str(text)
    assert old.request.DESCRIPTOR.full_name == "grpc.reflection.v1alpha.ServerReflectionRequest"


def test_the_default_pool_stays_free_for_others():
    """tritonclient registers the same names there."""
    code = (
        "from google.protobuf import descriptor_pool\n"
        "from runtime.wire.descriptors import SERVICES, methods\n"
        "for service in SERVICES: methods(service)\n"
        "for service in SERVICES:\n"
        "    try: descriptor_pool.Default().FindServiceByName(service)\n"
        "    except KeyError: continue\n"
        "    raise SystemExit(f'{service} is in the default pool')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 0, found.stderr


def test_a_message_travels():
    kind = message("inference.ModelInferRequest")
    sent = kind(model_name="m", raw_input_contents=[b"\0\1"])
    sent.parameters["threads"].int64_param = -3
    got = kind.FromString(sent.SerializeToString())
    assert got == sent and got.parameters["threads"].int64_param == -3

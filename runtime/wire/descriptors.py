"""Message classes and method tables of every service, from descriptors in a pool of our own.

Generated modules register in protobuf's default pool, where a second package with the same protocol
(tritonclient) then fails to import, and each refuses other major versions of protobuf. So the
compiled descriptors travel as data (`make protos` writes descriptors.binpb from protos/) and the
classes are made from them here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = Path(__file__).with_name("descriptors.binpb")

INFERENCE = "inference.GRPCInferenceService"
DEVICE = "edgevit.v1.DeviceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
# The same protocol under its first name, which older clients ask for.
REFLECTION_ALPHA = "grpc.reflection.v1alpha.ServerReflection"
SERVICES = (INFERENCE, DEVICE, HEALTH, REFLECTION, REFLECTION_ALPHA)

Message = Any
"""A protobuf message; its class is made at run time, so no static type can name its fields."""


@dataclass(frozen=True)
class Method:
    """One call of a service: its path on the wire and the classes of its two messages."""

    name: str
    path: str
    request: type[Any]
    response: type[Any]
    client_streaming: bool
    server_streaming: bool


# Two threads that ask for the same class first would get two, neither of which fits the other.
_making = RLock()


def pool() -> descriptor_pool.DescriptorPool:
    """The private pool with every service of SERVICES."""
    with _making:
        return _pool()


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    files = descriptor_pb2.FileDescriptorSet.FromString(FILE.read_bytes())
    made = descriptor_pool.DescriptorPool()
    for file in files.file:
        made.Add(file)
        if file.package == "grpc.reflection.v1":
            made.Add(_renamed(file, "grpc.reflection.v1alpha"))
    return made


@cache
def message(full_name: str) -> type[Any]:
    """The class of a message, by its full name: 'inference.ModelInferRequest'."""
    with _making:
        descriptor = pool().FindMessageTypeByName(full_name)
        made: type[Any] = message_factory.GetMessageClass(descriptor)
        return made


@cache
def methods(service: str) -> dict[str, Method]:
    """The calls of a service of SERVICES, by name."""
    found = pool().FindServiceByName(service)
    return {
        m.name: Method(
            m.name,
            f"/{service}/{m.name}",
            message(m.input_type.full_name),
            message(m.output_type.full_name),
            m.client_streaming,
            m.server_streaming,
        )
        for m in found.methods
    }


def _renamed(
    file: descriptor_pb2.FileDescriptorProto, package: str
) -> descriptor_pb2.FileDescriptorProto:
    """The same file under another package."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(file)
    copy.package, copy.name = package, f"{package.replace('.', '_')}.proto"
    old, new = f".{file.package}.", f".{package}."
    for message_type in copy.message_type:
        for field in message_type.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in copy.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return copy

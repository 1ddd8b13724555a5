"""What calls to an agent give, as plain typed values. Sizes are bytes, times seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from runtime.run_record import Environment
from runtime.sessions.base import Array
from runtime.tensor_spec import TensorSpec
from runtime.wire.descriptors import Message

T = TypeVar("T")
Parameter = bool | int | float | str


@dataclass(frozen=True)
class InferResult:
    """The outputs of one inference by name, and what the agent tells about it.

    `timings` are microseconds: queue_us, decode_us, compute_us, encode_us, total_us as far as the
    agent gives them. `parameters` are the answer's other parameters. The arrays are read-only.
    """

    outputs: dict[str, Array]
    timings: dict[str, int]
    model: str
    version: str
    parameters: dict[str, Parameter]

    @property
    def output(self) -> Array:
        """The only output. Raises ValueError where there are several."""
        (array,) = self.outputs.values()
        return array


@dataclass(frozen=True)
class ServerMetadata:
    """Name and version of the server, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True)
class ModelMetadata:
    """A loaded model; a size of -1 in a shape is any size."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    properties: dict[str, str]


@dataclass(frozen=True)
class ModelState:
    """One line of the index. `state` is READY, LOADING, UNLOADING or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class Engine:
    """An engine of a device, installed or not."""

    name: str
    target: str
    package: str
    version: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Model:
    """A model that the agent has loaded or tries to load."""

    name: str
    digest: str
    target: str
    precision: str
    state: str
    reason: str
    threads: int
    queued: int


@dataclass(frozen=True)
class StoredBundle:
    """A bundle in the agent's store."""

    digest: str
    names: list[str]
    size: int
    model: str
    targets: list[str]


@dataclass(frozen=True)
class AgentLimits:
    """What the agent takes; 0 is no limit but the disk's."""

    message_bytes: int
    bundle_bytes: int
    store_bytes: int
    concurrent_calls: int
    bundle_files: int
    chunk_bytes: int


@dataclass(frozen=True)
class Device:
    """A device as its agent describes it. memory_agent is the agent with its engine processes."""

    edgevit_version: str
    device_id: str
    generation: int
    name: str
    clock_unix_ns: int
    uptime_s: float
    environment: Environment
    engines: list[Engine]
    memory_total: int
    memory_available: int
    memory_agent: int
    disk_free: int
    store_used: int
    temperature_c: float | None
    models: list[Model]
    bundles: list[StoredBundle]
    limits: AgentLimits


@dataclass(frozen=True)
class Held:
    """What an agent has of a bundle: bytes from the start of each file, and whether it is whole."""

    complete: bool
    names: list[str]
    held: dict[str, int]


def plain(kind: type[T], message: Message, **more: Any) -> T:
    """A dataclass from the fields of a message that have its fields' names; `more` wins."""
    values = {
        f.name: more[f.name] if f.name in more else _value(getattr(message, f.name))
        for f in fields(kind)  # type: ignore[arg-type]
    }
    return kind(**values)


def read_device(response: Message) -> Device:
    """The answer of Describe. Raises pydantic.ValidationError for another edgevit's environment."""
    return plain(
        Device,
        response,
        environment=Environment.model_validate_json(response.environment_json),
        engines=[plain(Engine, engine) for engine in response.engines],
        models=[plain(Model, model) for model in response.models],
        bundles=[plain(StoredBundle, bundle) for bundle in response.bundles],
        limits=plain(AgentLimits, response.limits),
        temperature_c=response.temperature_c if response.HasField("temperature_c") else None,
    )


def parameters_of(parameters: Mapping[str, Message]) -> dict[str, Parameter]:
    """The values of an InferParameter map; one that holds nothing is left out."""
    found = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in found.items() if kind}


def _value(field: Any) -> Any:
    """A scalar as it is, a repeated field as a list."""
    return field if isinstance(field, bool | int | float | str | bytes) else list(field)

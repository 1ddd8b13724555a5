"""manifest.json, the contract between the converters and everything that reads a bundle.

A bundle is one folder: manifest.json, the artefacts, reference.npz, labels.txt, config.yaml.
Times are seconds, sizes are bytes, digests are lower-case hex sha256.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.tensor_spec import Layout as Layout  # noqa: PLC0414 -- part of this schema
from runtime.tensor_spec import TensorSpec as TensorSpec  # noqa: PLC0414

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
REFERENCE_NAME = "reference.npz"
LABELS_NAME = "labels.txt"
CONFIG_NAME = "config.yaml"


class Record(BaseModel):
    """Base of every file schema: unknown fields are an error, so that a typo cannot hide."""

    model_config = ConfigDict(extra="forbid")


class Preprocessing(Record):
    """How a picture becomes the input, and what the artefact does by itself."""

    color: Literal["RGB"] = "RGB"
    input_dtype: Literal["float32", "uint8"] = "float32"
    input_range: tuple[float, float] = (0.0, 1.0)
    mean: list[float]
    std: list[float]
    normalization_baked_in: bool = True
    height: int
    width: int
    crop_pct: float
    interpolation: str


class ModelInfo(Record):
    """Which torch module the bundle was made from."""

    ref: str
    family: str | None = None
    num_classes: int
    weights: str
    weights_sha256: str
    trained: bool = Field(description="False where the weights are random: fit for latency only")
    notes: list[str] = Field(
        default_factory=list, description="What was changed on the way, in plain words"
    )


class ReparamProof(Record):
    """What reparameterization did, and how exact it was.

    The relative differences are max |after - before| over the spread of `before` between inputs.
    """

    rules: dict[str, int]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    nodes_before: int
    nodes_after: int
    max_rel_float64: float
    max_rel_float32: float
    gate_float64: float
    gate_float32: float
    inputs: int


class Delegation(Record):
    """How much of the graph the engine's fast path took.

    nodes_* count graph nodes as the engine counts them. `outside` maps an op name to how many
    nodes of it run outside the delegate.
    """

    delegate: str
    partitions: int
    nodes_delegated: int | None = None
    nodes_total: int | None = None
    outside: dict[str, int] = Field(default_factory=dict)


class Verification(Record):
    """The comparison of an artefact with the torch reference.

    error_over_spread = max |artefact - torch| / spread, where spread is the largest change of the
    torch output between any two inputs. cosine_centred is the cosine of the outputs after the mean
    over the inputs is taken away. top1_agreement is a fraction of the inputs.
    """

    status: Literal["passed", "failed", "not_executed"]
    prover: str
    inputs: int = 0
    error_over_spread: float | None = None
    cosine_centred: float | None = None
    top1_agreement: float | None = None
    spread: float | None = None
    gates: dict[str, float] = Field(default_factory=dict)
    reason: str | None = None
    first_divergence: str | None = None


class Artifact(Record):
    """One converted model."""

    target: str
    file: str
    sha256: str
    size_bytes: int
    precision: str
    input: TensorSpec
    output: TensorSpec
    engine: str
    tool_versions: dict[str, str]
    rewrites: dict[str, int] = Field(default_factory=dict)
    delegation: Delegation | None = None
    verification: Verification
    timings_s: dict[str, float]


class Failure(Record):
    """A target that did not come out, and at which stage."""

    stage: str
    error: str
    hint: str | None = None
    log: str | None = None


class Manifest(Record):
    """manifest.json."""

    schema_version: Literal[1] = 1
    edgevit_version: str
    created: str
    model: ModelInfo
    preprocessing: Preprocessing
    classes: int
    labels: str | None = None
    reference: str = REFERENCE_NAME
    reference_sha256: str
    reparam: ReparamProof
    artifacts: dict[str, Artifact]
    failures: dict[str, Failure] = Field(default_factory=dict)
    timings_s: dict[str, float]
    machine: dict[str, Any]

"""plan.json, the contract between partitioning a model and serving it; and the folder around it.

    PLAN/  plan.json   cluster.yaml   accuracy.json   fusion/fusion.npz   sub0/ sub1/ ... (bundles)

Times are seconds, sizes bytes, digests lower-case hex sha256, accuracies percent. Reading a plan
needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from partition.errors import PartitionError
from partition.placing.cluster_file import NAME as CLUSTER_NAME
from partition.placing.cluster_file import ClusterFile, read_cluster
from runtime.bundle import check_version, first_problem
from runtime.digest import sha256_file, sha256_tree
from runtime.errors import CheckFailed, RuntimeFault
from runtime.manifest import Preprocessing, Record

SCHEMA_VERSION = 1
PLAN_NAME = "plan.json"
ACCURACY_NAME = "accuracy.json"
FUSION_FOLDER = "fusion"

# What differs between two runs that made the same plan. A bundle's folder holds its manifest, with
# the times of its conversion; what it serves is in `artifacts`.
OUTSIDE_THE_DIGEST = ("digest", "created", "timings_s", "machine")
OUTSIDE_OF_A_SUBMODEL = ("bundle_digest",)
# coremltools puts new random identifiers into every package that it writes.
NEVER_ALIKE = "coreml"

Answer = Literal["features", "logits"]


class PlanGeometry(Record):
    """The widths of a ViT, as partition.cutting.geometry.Geometry has them."""

    depth: int
    heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    tokens: int
    classes: int


class PlanModel(Record):
    """The model that was partitioned; size is its input's side in pixels."""

    ref: str
    weights: str
    weights_sha256: str
    size: int
    geometry: PlanGeometry
    params: int
    macs: int
    bytes: int
    notes: list[str] = Field(default_factory=list)


class PlanData(Record):
    """The labelled pictures it was trained on; digest is over what the reference names."""

    ref: str
    digest: str
    train: int
    test: int


class PlannedSubmodel(Record):
    """One sub-model: which classes it knows, what it kept, what it costs, and where it runs.

    `classes` are indices into the plan's labels. `kept_sha256` is over the kept indices. Its answer
    is `answer_values` float32 numbers, the block [answer_start, answer_start + answer_values) of
    what the fusion takes. `primary` and `replicas` are names of devices.
    """

    name: str
    classes: list[int]
    kept_sha256: str
    geometry: PlanGeometry
    params: int
    macs: int
    memory: int
    answer_start: int
    answer_values: int
    weights_sha256: str
    bundle: str
    bundle_digest: str
    artifacts: dict[str, str]
    artifact_bytes: dict[str, int]
    primary: str
    replicas: list[str]


class PlannedDevice(Record):
    """One device: how fast it was taken to be, and what the plan asks of it.

    latency is predicted for one picture: the compute of its own sub-models one after another, and
    their answers over its link.
    """

    name: str
    macs_per_s: float
    measured: bool
    target: str
    submodels: list[str]
    replicas: list[str]
    latency: float
    memory: int
    memory_limit: int | None
    energy: float | None
    energy_limit: float | None


class PlannedFusion(Record):
    """The fusion head: an .npz for numpy, and how far it is from torch's.

    widths are those of its layers, input first. The file has weight0, bias0, weight1, ... and
    `activation` stands between the layers. error_over_spread is max |numpy - torch| over the
    largest change of torch's logits between any two of the `pictures`.
    """

    file: str
    sha256: str
    widths: list[int]
    activation: str
    params: int
    error_over_spread: float
    pictures: int


class LostBlocks(Record):
    """Top-1 of the fused model without the answers of some sub-models, whose blocks are zeros."""

    lost: list[str]
    blind: list[int] = Field(description="classes that no remaining sub-model was trained on")
    top1: float


class Served(Record):
    """The artefacts on their engines with numpy's fusion, beside torch, on some held-out pictures.

    same_top1 counts the pictures with the same answer; the error is over the spread of torch's
    logits, as everywhere.
    """

    pictures: int
    same_top1: int
    error_over_spread: float


class Accuracy(Record):
    """accuracy.json: held-out top-1, percent."""

    pictures: int
    full: float
    fused: float
    without: list[LostBlocks]
    submodels: dict[str, float] = Field(
        description="each sub-model's own head, on the held-out pictures of its own classes"
    )
    served: Served | None = Field(
        default=None, description="absent where an engine does not run on the machine that planned"
    )


class Placed(Record):
    """How the placement was found. greedy_gap: how much longer the greedy one takes, 0.1 a tenth.

    latency is predicted, that of the slowest device.
    """

    method: str
    latency: float
    greedy_gap: float | None


class PlanRecord(Record):
    """plan.json."""

    schema_version: Literal[1] = 1
    kind: Literal["edgevit-plan"] = "edgevit-plan"
    digest: str = ""
    edgevit_version: str
    created: str
    model: PlanModel
    preprocessing: Preprocessing
    data: PlanData
    labels: list[str]
    split: str
    answer: Answer
    seed: int
    options: dict[str, int | float | str | None]
    submodels: list[PlannedSubmodel]
    fusion: PlannedFusion
    devices: list[PlannedDevice]
    placed: Placed
    accuracy: Accuracy
    versions: dict[str, str]
    machine: dict[str, Any]
    timings_s: dict[str, float]

    def submodel(self, name: str) -> PlannedSubmodel:
        """The sub-model of that name. Raises PartitionError."""
        for submodel in self.submodels:
            if submodel.name == name:
                return submodel
        known = ", ".join(submodel.name for submodel in self.submodels)
        raise PartitionError(f"the plan has no sub-model '{name}', it has: {known}")


@dataclass(frozen=True)
class Plan:
    """A plan's folder whose plan.json was read and whose digest is right."""

    path: Path
    record: PlanRecord

    @property
    def digest(self) -> str:
        """What tells this plan from any other."""
        return self.record.digest

    def bundle(self, submodel: PlannedSubmodel) -> Path:
        """The bundle's folder."""
        return self.path / submodel.bundle

    @property
    def fusion(self) -> Path:
        """The fusion head's .npz."""
        return self.path / self.record.fusion.file

    def cluster(self) -> ClusterFile:
        """Its cluster.yaml. Raises PartitionError."""
        return read_cluster(self.path / CLUSTER_NAME)


def digest_of(record: PlanRecord) -> str:
    """sha256 over the plan but for what two runs of the same plan need not share."""
    content = record.model_dump(mode="json")
    for name in OUTSIDE_THE_DIGEST:
        del content[name]
    for submodel in content["submodels"]:
        for name in OUTSIDE_OF_A_SUBMODEL:
            del submodel[name]
        submodel["artifacts"].pop(NEVER_ALIKE, None)
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(written.encode()).hexdigest()


def sealed(record: PlanRecord) -> PlanRecord:
    """The same with its digest filled in."""
    return record.model_copy(update={"digest": digest_of(record)})


def read_plan(path: Path) -> Plan:
    """Read PLAN/plan.json. Raises PartitionError saying what is wrong with the folder.

    The bytes of bundles and fusion are not looked at: `check_files` does that.
    """
    file = path / PLAN_NAME
    if not file.is_file():
        what = (
            f"has no {PLAN_NAME}"
            if path.is_dir()
            else "is a file"
            if path.exists()
            else "does not exist"
        )
        raise PartitionError(
            f"expected a plan (the folder `edgevit partition` writes): {path} {what}"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        check_version(data, file, SCHEMA_VERSION)
        record = PlanRecord.model_validate(data)
    except ValidationError as error:
        raise PartitionError(f"{file}: {first_problem(error)}; partition again") from error
    except (OSError, ValueError) as error:
        raise PartitionError(f"{file} cannot be read ({error}); partition again") from error
    except RuntimeFault as error:
        raise PartitionError(str(error)) from error
    if record.digest != digest_of(record):
        raise PartitionError(
            f"{file} was changed since it was made: its digest is not that of its content. "
            "Partition again"
        )
    for name in (record.fusion.file, *(submodel.bundle for submodel in record.submodels)):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or not name:
            raise PartitionError(f"{file} names '{name}', which is not inside the plan")
    return Plan(path, record)


def check_files(plan: Plan) -> None:
    """Compare the digests of all bundles and of the fusion head. Raises CheckFailed."""
    record = plan.record
    wanted = [(plan.fusion, record.fusion.sha256, sha256_file)]
    wanted += [(plan.bundle(s), s.bundle_digest, sha256_tree) for s in record.submodels]
    for path, digest, read in wanted:
        if not path.exists() or read(path) != digest:
            raise CheckFailed(
                f"{path} is not what the plan was made with; copy the plan anew or partition again"
            )

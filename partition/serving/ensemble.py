"""What a coordinator needs to know of a plan: which sub-model runs where, and how to fuse."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from partition.errors import PartitionError
from partition.fusion_files import RELU, FusionHead
from partition.placing.cluster_file import access_to
from partition.plan import Plan, PlannedSubmodel
from runtime.bundle import read_bundle
from runtime.client.channel import Access
from runtime.digest import sha256_file
from runtime.errors import CheckFailed
from runtime.serving.engines.form import Form
from runtime.serving.storage.names import default_name
from runtime.tensor_spec import ANY, TensorSpec

MOST_ROWS = 16  # of one call to a worker, as the agent's own batches


@dataclass(frozen=True)
class Artifact:
    """Input and output of one artefact, as the agent serves them; most rows of one call."""

    input: TensorSpec
    output: TensorSpec
    most: int


@dataclass(frozen=True)
class Member:
    """One sub-model: its block is [start, start + width) of what the fusion takes.

    classes are indices into the labels, digest is its bundle's, places are names of devices in the
    order in which they are asked, artifacts are by target.
    """

    name: str
    classes: tuple[int, ...]
    start: int
    width: int
    digest: str
    places: tuple[str, ...]
    artifacts: Mapping[str, Artifact]


@dataclass(frozen=True)
class Site:
    """One device: how to reach its agent, and the target that it should serve."""

    name: str
    access: Access
    target: str


@dataclass(frozen=True)
class Ensemble:
    """The whole model: `input` is what a request carries, `most` how many rows of it at once."""

    name: str
    digest: str
    members: tuple[Member, ...]
    sites: Mapping[str, Site]
    head: FusionHead
    input: TensorSpec
    most: int
    properties: Mapping[str, str]

    @property
    def version(self) -> str:
        """What a request may ask for."""
        return self.digest[:12]

    @property
    def width(self) -> int:
        """Numbers of all blocks together."""
        return self.head.widths[0]

    @property
    def output(self) -> TensorSpec:
        """One logit a class."""
        rows = ANY if self.most > 1 else 1
        return TensorSpec("logits", [rows, self.head.widths[-1]], "float32")

    def blind(self, missing: Collection[str]) -> list[int]:
        """The classes that only missing sub-models were trained on, in ascending order."""
        lost = {c for m in self.members if m.name in missing for c in m.classes}
        known = {c for m in self.members if m.name not in missing for c in m.classes}
        return sorted(lost - known)


def ensemble_of(plan: Plan, accesses: Mapping[str, Access], name: str | None = None) -> Ensemble:
    """What `plan` says; `accesses` are by device, and take the place of those in its cluster file.

    Raises PartitionError where a device has no address, or an artefact or the head does not fit;
    CheckFailed where the head has other bytes; RuntimeFault where a bundle cannot be read.
    """
    record, cluster = plan.record, plan.cluster()
    if record.fusion.activation != RELU:
        raise PartitionError(
            f"{plan.path}: the fusion has the activation '{record.fusion.activation[:40]}', this "
            f"edgevit knows {RELU}; upgrade with pip install -U edgevit"
        )
    if not plan.fusion.is_file() or sha256_file(plan.fusion) != record.fusion.sha256:
        raise CheckFailed(
            f"{plan.fusion} is not what the plan was made with; copy the plan anew or partition "
            "again"
        )
    unknown = set(accesses) - {device.name for device in record.devices}
    if unknown:
        known = ", ".join(device.name for device in record.devices)
        raise PartitionError(f"the plan has no device '{min(unknown)}'; it has: {known}")
    in_use = {place for s in record.submodels for place in (s.primary, *s.replicas)}
    targets = {device.name: device.target for device in record.devices}
    sites = {}
    for device in cluster.devices:
        if device.name in in_use:
            access = accesses.get(device.name)
            if access is None and device.address is None:
                raise PartitionError(
                    f"{device.name} has no address in {plan.path}/cluster.yaml; say where its "
                    f"agent listens: --device {device.name}=HOST:PORT"
                )
            access = access or access_to(device, plan.path)
            sites[device.name] = Site(device.name, access, targets[device.name])
    members = tuple(_member(plan, submodel) for submodel in record.submodels)
    for member in members:
        for place in member.places:
            _check_place(member, place, sites)
    head = FusionHead.load(plan.fusion)
    _check_blocks(plan, members, head)
    first = members[0]
    input_ = first.artifacts[sites[first.places[0]].target].input
    artifacts = [(m.name, a) for m in members for a in m.artifacts.values()]
    for part, artifact in artifacts:
        if _picture(artifact.input) != _picture(input_):
            raise PartitionError(
                f"{plan.path}: {part} takes {artifact.input.dtype} {artifact.input.shape}, "
                f"{first.name} {input_.dtype} {input_.shape}: not the same pictures"
            )
    most = min(artifact.most for _, artifact in artifacts)
    rows = ANY if most > 1 else 1
    return Ensemble(
        name=name or default_name(record.model.ref),
        digest=plan.digest,
        members=members,
        sites=sites,
        head=head,
        input=TensorSpec(input_.name, [rows, *input_.shape[1:]], input_.dtype, input_.layout),
        most=most,
        properties=_properties(plan, members),
    )


def _member(plan: Plan, submodel: PlannedSubmodel) -> Member:
    artifacts = {}
    for target, artifact in read_bundle(plan.bundle(submodel)).manifest.artifacts.items():
        form = Form.of(artifact.input, artifact.output, MOST_ROWS)
        served, answer = form.served()
        artifacts[target] = Artifact(served, answer, (form.most or 1) if form.joins else 1)
    return Member(
        name=submodel.name,
        classes=tuple(submodel.classes),
        start=submodel.answer_start,
        width=submodel.answer_values,
        digest=submodel.bundle_digest,
        places=(submodel.primary, *submodel.replicas),
        artifacts=artifacts,
    )


def _check_place(member: Member, place: str, sites: Mapping[str, Site]) -> None:
    if place not in sites:
        raise PartitionError(f"{member.name} is placed on '{place}', which is not a device")
    target = sites[place].target
    if target not in member.artifacts:
        known = ", ".join(sorted(member.artifacts)) or "none"
        raise PartitionError(
            f"{place} serves {target}, and the bundle of {member.name} has: {known}"
        )


def _picture(spec: TensorSpec) -> tuple[str, list[int]]:
    """What one picture is, in whatever layout."""
    shape = spec.shape[1:]
    return spec.dtype, [*shape[1:], shape[0]] if spec.layout == "NCHW" else shape


def _check_blocks(plan: Plan, members: tuple[Member, ...], head: FusionHead) -> None:
    """Every number of the head's input is of one sub-model, every answer has a label."""
    end = 0
    for member in sorted(members, key=lambda m: m.start):
        if member.start != end or member.width < 1:
            raise PartitionError(f"{plan.path}: the block of {member.name} does not fit the others")
        end += member.width
    if head.widths != plan.record.fusion.widths or head.widths[0] != end:
        raise PartitionError(
            f"{plan.fusion} takes {head.widths[0]} numbers, the sub-models answer with {end}"
        )
    if head.widths[-1] != len(plan.record.labels):
        raise PartitionError(
            f"{plan.fusion} gives {head.widths[-1]} answers for {len(plan.record.labels)} labels"
        )


def _properties(plan: Plan, members: tuple[Member, ...]) -> dict[str, str]:
    """What ModelMetadata tells; values that are no plain text are JSON."""
    record = plan.record
    submodels: dict[str, Any] = {
        m.name: {"classes": m.classes, "devices": m.places, "bundle_digest": m.digest}
        for m in members
    }
    return {
        "model": record.model.ref,
        "plan_digest": plan.digest,
        "labels": json.dumps(record.labels),
        "preprocessing": record.preprocessing.model_dump_json(),
        "submodels": json.dumps(submodels),
        "trained": "true",
    }

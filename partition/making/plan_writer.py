"""Put the plan's folder together from the steps' outputs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml

from partition.cutting.geometry import Geometry
from partition.fusion_files import FUSION_NPZ, FusionProof
from partition.making.chains import Chain, Ground
from partition.making.original import read_about
from partition.making.steps import Step, output_of, seconds_of
from partition.making.train_tasks import BUNDLE
from partition.making.workspace import Workspace, linked, writing
from partition.options import PartitionOptions
from partition.placing.budgets import Budget, Cost, loads_of
from partition.placing.cluster_file import MEASURED, ClusterFile
from partition.placing.cluster_file import NAME as CLUSTER_NAME
from partition.placing.loosen import Fitted
from partition.placing.replicas import replicas
from partition.plan import (
    ACCURACY_NAME,
    FUSION_FOLDER,
    PLAN_NAME,
    Accuracy,
    Placed,
    PlanData,
    PlanGeometry,
    PlanModel,
    PlannedDevice,
    PlannedFusion,
    PlannedSubmodel,
    PlanRecord,
    sealed,
)
from runtime.bundle import read_bundle
from runtime.digest import sha256_file, sha256_tree
from runtime.environment import edgevit_version


@dataclass(frozen=True)
class Made:
    """All that a finished run knows: what was asked, what was decided, and the steps' outputs.

    counts are the pictures for training and test, beyond the bytes that the artefact of each
    sub-model takes beyond its weights, chains their steps, done all steps of the run.
    """

    ground: Ground
    counts: tuple[int, int]
    labels: tuple[str, ...]
    whole: Geometry
    classes: tuple[tuple[int, ...], ...]
    fitted: Fitted
    budgets: tuple[Budget, ...]
    chains: tuple[Chain, ...]
    beyond: Mapping[int, int]
    fusion: Step
    accuracy: Step
    done: tuple[Step, ...]

    @property
    def cluster(self) -> ClusterFile:
        """The devices."""
        return self.ground.cluster

    @property
    def options(self) -> PartitionOptions:
        """What was asked."""
        return self.ground.options

    @property
    def costs(self) -> list[Cost]:
        """Costs with the bytes of the artefacts as they came out."""
        sizes = (g.bytes + self.beyond[i] for i, g in enumerate(self.fitted.geometries))
        return [replace(c, memory=m) for c, m in zip(self.fitted.costs, sizes, strict=True)]


def write_plan(made: Made, space: Workspace, cluster: Path) -> PlanRecord:
    """Fill space.staged; cluster is the file that the person gave. Raises PartitionError."""
    steps, staged = space.folders.steps, space.staged
    with writing(space.root):
        staged.mkdir()
        for index, chain in enumerate(made.chains):
            linked(output_of(chain[-1], steps) / BUNDLE, staged / f"sub{index}")
            shutil.rmtree(staged / f"sub{index}" / "logs", ignore_errors=True)
        (staged / FUSION_FOLDER).mkdir()
        fusion = staged / FUSION_FOLDER / FUSION_NPZ
        shutil.copyfile(output_of(made.fusion, steps) / FUSION_NPZ, fusion)
        (staged / CLUSTER_NAME).write_text(cluster_text(made.cluster, cluster), encoding="utf-8")
        record = sealed(_record(made, steps, staged))
        accuracy = record.accuracy.model_dump_json(indent=1)
        (staged / ACCURACY_NAME).write_text(accuracy + "\n", encoding="utf-8")
        text = record.model_dump_json(indent=1)
        (staged / PLAN_NAME).write_text(text + "\n", encoding="utf-8")
    return record


def cluster_text(cluster: ClusterFile, path: Path) -> str:
    """The cluster file for the plan's folder: as it was written, but with whole paths."""
    folder = path.resolve().parent
    devices = [device.beside(folder) for device in cluster.devices]
    whole = cluster.model_copy(update={"devices": devices})
    if whole == cluster:
        return path.read_text(encoding="utf-8")
    return yaml.safe_dump(whole.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def _record(made: Made, steps: Path, staged: Path) -> PlanRecord:
    about = read_about(output_of(made.ground.original, steps))
    accuracy = Accuracy.model_validate_json(
        (output_of(made.accuracy, steps) / ACCURACY_NAME).read_text("utf-8")
    )
    copies = replicas(
        made.costs, made.budgets, made.fitted.placement.device_of, _losses(made, accuracy),
        most=made.cluster.settings.replicas, latency=made.cluster.settings.latency,
    )  # fmt: skip
    placement = made.fitted.placement
    return PlanRecord(
        edgevit_version=edgevit_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=PlanModel(
            ref=about.ref,
            weights=about.weights,
            weights_sha256=about.weights_sha256,
            size=about.size,
            geometry=PlanGeometry(**asdict(made.whole)),
            params=made.whole.params,
            macs=made.whole.macs,
            bytes=made.whole.bytes,
            notes=about.notes,
        ),
        preprocessing=about.preprocessing,
        data=PlanData(
            ref=made.ground.data["data"],
            digest=made.ground.data["data_digest"],
            train=made.counts[0],
            test=made.counts[1],
        ),
        labels=list(made.labels),
        split=made.options.method,
        answer=made.options.answer,
        seed=made.options.seed,
        options=_options(made),
        submodels=_submodels(made, steps, staged, copies),
        fusion=_fusion(made, steps, staged),
        devices=_devices(made, copies),
        placed=Placed(
            method=placement.method, latency=placement.latency, greedy_gap=placement.greedy_gap
        ),
        accuracy=accuracy,
        versions=_versions(),
        machine={
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        timings_s={step.name: round(seconds_of(step, steps), 3) for step in made.done},
    )


def _options(made: Made) -> dict[str, int | float | str | None]:
    """What was asked, and what training did without being asked."""
    from partition.learning.train import TuneOptions
    from partition.learning.train_fusion import FusionOptions

    tune, fuse, settings = TuneOptions(), FusionOptions(), made.cluster.settings
    return {
        "keep": made.options.keep,
        "epochs": made.options.epochs,
        "fusion_epochs": made.options.fusion_epochs,
        "total_size": settings.total_size,
        "latency": settings.latency,
        "inferences": settings.inferences,
        "lr": tune.lr,
        "other_share": tune.other_share,
        "temperature": tune.temperature,
        "label_weight": tune.label_weight,
        "fusion_lr": fuse.lr,
        "fusion_passes": fuse.passes,
        "block_dropout": fuse.block_dropout,
    }


def _submodels(
    made: Made, steps: Path, staged: Path, copies: Sequence[Sequence[int]]
) -> list[PlannedSubmodel]:
    from partition.making.prune_tasks import kept_digest, read_kept

    found, start = [], 0
    names = [budget.name for budget in made.budgets]
    for index, chain in enumerate(made.chains):
        geometry = made.fitted.geometries[index]
        values = made.fitted.costs[index].answer // 4
        folder = staged / f"sub{index}"
        manifest = read_bundle(folder).manifest
        found.append(
            PlannedSubmodel(
                name=f"sub{index}",
                classes=list(made.classes[index]),
                kept_sha256=kept_digest(read_kept(output_of(chain[1], steps))),
                geometry=PlanGeometry(**asdict(geometry)),
                params=geometry.params,
                macs=geometry.macs,
                memory=made.costs[index].memory,
                answer_start=start,
                answer_values=values,
                weights_sha256=manifest.model.weights_sha256,
                bundle=f"sub{index}",
                bundle_digest=sha256_tree(folder),
                artifacts={t: a.sha256 for t, a in manifest.artifacts.items()},
                artifact_bytes={t: a.size_bytes for t, a in manifest.artifacts.items()},
                primary=names[made.fitted.placement.device_of[index]],
                replicas=[names[d] for d in copies[index]],
            )
        )
        start += values
    return found


def _fusion(made: Made, steps: Path, staged: Path) -> PlannedFusion:
    proof = FusionProof.read(output_of(made.accuracy, steps))
    return PlannedFusion(
        file=f"{FUSION_FOLDER}/{FUSION_NPZ}",
        sha256=sha256_file(staged / FUSION_FOLDER / FUSION_NPZ),
        widths=proof.widths,
        activation=proof.activation,
        params=proof.params,
        error_over_spread=proof.error_over_spread,
        pictures=proof.pictures,
    )


def _devices(made: Made, copies: Sequence[Sequence[int]]) -> list[PlannedDevice]:
    costs = made.costs
    loads = loads_of(costs, made.budgets, made.fitted.placement.device_of)
    found = []
    for number, (device, load) in enumerate(zip(made.cluster.devices, loads, strict=True)):
        held = [i for i, places in enumerate(copies) if number in places]
        budget = load.budget
        joules = load.joules + sum(budget.joules(costs[i]) for i in held)
        found.append(
            PlannedDevice(
                name=device.name,
                macs_per_s=budget.macs_per_s,
                measured=device.compute == MEASURED,
                target=device.target,
                submodels=[f"sub{i}" for i in load.holds],
                replicas=[f"sub{i}" for i in held],
                latency=load.seconds,
                memory=load.memory + sum(costs[i].memory for i in held),
                memory_limit=budget.memory,
                energy=None if budget.energy is None else joules,
                energy_limit=budget.energy,
            )
        )
    return found


def _losses(made: Made, accuracy: Accuracy) -> list[float]:
    """Points of accuracy that the whole loses without each sub-model."""
    alone = {case.lost[0]: case.top1 for case in accuracy.without if len(case.lost) == 1}
    return [accuracy.fused - alone.get(f"sub{i}", 0.0) for i in range(len(made.classes))]


def _versions() -> dict[str, str]:
    from edgevit.training.record import versions

    return {**versions(), "python": platform.python_version()}

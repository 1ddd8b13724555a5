"""The way of a plan: split, measure, loosen, then prune, train and convert each part, and fuse."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from converters.pipeline import check_packages
from edgevit.data import open_splits
from partition.cutting.classes import split
from partition.cutting.geometry import Geometry, Keep, geometry_of
from partition.making.chains import Chain, Ground
from partition.making.jobs import Job, LocalRunner, Runner
from partition.making.measure import check_reach, macs_per_s
from partition.making.original import (
    DATA_SEED,
    data_digest,
    data_reference,
    load_reference,
    save_original,
)
from partition.making.plan_writer import Made, write_plan
from partition.making.steps import Step, Tell, carry_out, is_done, output_of
from partition.making.train_tasks import BUNDLE
from partition.making.workspace import Workspace, check_goal, workspace, writing
from partition.options import EXPLICIT, PartitionOptions, explicit_classes
from partition.placing.budgets import Budget, budgets_of, loads_of
from partition.placing.cluster_file import MEASURED, ClusterFile, read_cluster
from partition.placing.loosen import Fitted, Limits, default_limits, loosen
from partition.plan import Plan, read_plan
from partition.progress import Progress, silent
from runtime.bundle import read_bundle

if TYPE_CHECKING:
    from converters.source import Source

STATES = "states"  # of trainings that are under way
CLASSES = "classes.npy"
# What a job takes: torch and a vendor's converter, and the model with its sub-model in training.
JOB_BYTES = 3 * 2**29
JOB_COPIES = 8
UNKNOWN_SPEED = 1.0  # MAC/s, where only bytes are asked about


def partition(
    model: str,
    weights: str | None,
    data: str,
    cluster: Path,
    out: Path,
    options: PartitionOptions | None = None,
    progress: Progress = silent,
) -> Plan:
    """Split a trained ViT by classes over the devices of a cluster file, and write the plan `out`.

    model and weights are references as everywhere (converters.source), data one of edgevit.data. A
    run that was cut off goes on from `out`.partial when it is started again with the same words.
    Raises PartitionError (InfeasibleError where the budgets cannot be met), DataError,
    ConvertError, ModelError; whatever is raised, `out` is as it was.
    """
    options = options or PartitionOptions()
    out = out.absolute()
    check_goal(out, options.force)
    known = read_cluster(cluster)
    check_packages(known.targets)
    splits = open_splits(data, seed=DATA_SEED)
    labels = splits[0].classes
    explicit = None
    if options.method == EXPLICIT:
        explicit = explicit_classes(Path(options.split), labels)
    parts = known.submodels if explicit is None else len(explicit)
    if options.method != "importance":
        split(options.method, len(labels), parts, options.seed, explicit=explicit)  # refuses early
    source = load_reference(model, weights, options.size, len(labels))
    with workspace(out, options.force) as space:
        whole = geometry_of(source.module)
        run = _Run(known, options, space, progress, parts, whole.bytes)
        run.ground = Ground(
            original=run.keep(source),
            data={"data": data_reference(data), "data_digest": data_digest(data, splits)},
            options=options,
            cluster=known,
            folder=cluster.absolute().parent,
            states=space.root / STATES,
        )
        counts = (len(splits[0]), len(splits[1]))
        made = run.to_the_end(whole, explicit, labels, counts)
        write_plan(made, space, cluster)
        space.publish(options.force)
    return read_plan(out)


class _Run:
    """One call of `partition`: what all of its steps need."""

    ground: Ground

    def __init__(
        self,
        cluster: ClusterFile,
        options: PartitionOptions,
        space: Workspace,
        progress: Progress,
        parts: int,
        model_bytes: int,
    ) -> None:
        self.cluster, self.options = cluster, options
        self.space, self.progress = space, progress
        self.steps = space.folders.steps
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        side_by_side = min(options.jobs or cores or 1, parts)
        self.threads = options.threads or max(1, (cores or 1) // side_by_side)
        self.all_threads = options.threads or cores or 1
        # After the threads: they change the last bits of what comes out, and free memory must not.
        room = psutil.virtual_memory().available // (JOB_BYTES + JOB_COPIES * model_bytes)
        self.jobs = side_by_side if options.jobs else max(1, min(side_by_side, room))
        self.done: list[Step] = []

    def keep(self, source: Source) -> Step:
        """Write the model where the jobs read it, unless it is there."""
        settings = {
            "weights_sha256": source.weights_sha256,
            "ref": source.ref,
            "size": source.preprocessing.height,
        }
        step = Step("original", "original", settings)

        def task(
            settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
        ) -> None:
            save_original(source, out)

        with writing(self.space.root):
            carry_out(step.order(), task, self.steps, lambda share, text: None)
        self.done.append(step)
        return step

    def to_the_end(
        self,
        whole: Geometry,
        explicit: list[list[int]] | None,
        labels: tuple[str, ...],
        counts: tuple[int, int],
    ) -> Made:
        """Every step; those that an earlier run has done are taken as they are."""
        settings = self.cluster.settings
        classes = self._split(whole.classes, explicit)
        limits = default_limits(whole, settings.latency, settings.total_size)
        budgets = self._budgets(whole, classes, limits)
        extra: dict[int, int] = {}
        while True:
            fitted = self._loosen(whole, classes, budgets, limits, extra)
            chains = [
                self.ground.chain(i, own, fitted.keeps[i].heads, labels, self.threads)
                for i, own in enumerate(classes)
            ]
            self._run([Job(f"sub{i}", chain) for i, chain in enumerate(chains)])
            beyond = self._beyond(chains, fitted)
            if fits(fitted, budgets, beyond):
                break
            extra = {i: max(size, extra.get(i, 0)) for i, size in beyond.items()}
        device_of = fitted.placement.device_of
        fusion, accuracy = self.ground.fusion_steps(chains, device_of, self.all_threads)
        self._run([Job("fusion", (fusion, accuracy))], alone=True)
        return Made(
            ground=self.ground, counts=counts, labels=labels, whole=whole, classes=classes,
            fitted=fitted, budgets=tuple(budgets), chains=tuple(chains), beyond=beyond,
            fusion=fusion, accuracy=accuracy, done=tuple(self.done),
        )  # fmt: skip

    def _split(self, count: int, explicit: list[list[int]] | None) -> tuple[tuple[int, ...], ...]:
        options = self.options
        parts = self.cluster.submodels if explicit is None else len(explicit)
        importance = None
        if options.method == "importance":
            step = self.ground.classes_step()
            self._run([Job("classes", (step,))], alone=True)
            importance = np.load(output_of(step, self.steps) / CLASSES, allow_pickle=False)
        return split(options.method, count, parts, options.seed, importance, explicit)

    def _budgets(
        self, whole: Geometry, classes: Sequence[Sequence[int]], limits: Limits
    ) -> list[Budget]:
        """The devices with their speeds; those that are to be measured are, one after another."""
        devices = self.cluster.devices
        unknown = [device for device in devices if device.compute == MEASURED]
        speeds: dict[str, float] = {}
        if unknown:
            # As large as the bytes alone allow: the speed is not known, so no time is.
            free = [Budget(d.name, UNKNOWN_SPEED, memory=d.memory) for d in devices]
            fitted = self._loosen(whole, classes, free, Limits(None, limits.total_size), {})
            heads = min(keep.heads for keep in fitted.keeps)
            targets = {device.target for device in unknown}
            probe = self.ground.probe_step(heads, sorted(targets), self.jobs)
            steps = {d.name: self.ground.measure_step(d, probe) for d in unknown}
            for device in unknown:
                if not device.is_local and not is_done(steps[device.name], self.steps):
                    check_reach(device, self.ground.folder)
            unique = {step.folder: step for step in steps.values()}
            self._run([Job("measure", (probe, *unique.values()))], alone=True)
            speeds = {n: macs_per_s(output_of(step, self.steps)) for n, step in steps.items()}
        found = [speeds[d.name] if d.compute == MEASURED else float(d.compute) for d in devices]
        return budgets_of(self.cluster, found)

    def _loosen(
        self,
        whole: Geometry,
        classes: Sequence[Sequence[int]],
        budgets: Sequence[Budget],
        limits: Limits,
        extra: Mapping[int, int],
    ) -> Fitted:
        keep = None if self.options.keep is None else Keep(self.options.keep)
        return loosen(
            whole, classes, budgets, limits,
            keep=keep, logits=self.options.answer == "logits", extra_bytes=extra,
        )  # fmt: skip

    def _beyond(self, chains: Sequence[Chain], fitted: Fitted) -> dict[int, int]:
        """What the largest artefact that is served takes beyond the weights, for each sub-model."""
        served = {device.target for device in self.cluster.devices}
        found = {}
        for index, chain in enumerate(chains):
            manifest = read_bundle(output_of(chain[-1], self.steps) / BUNDLE).manifest
            sizes = [a.size_bytes for t, a in manifest.artifacts.items() if t in served]
            found[index] = max(0, max(sizes) - fitted.geometries[index].bytes)
        return found

    def _run(self, jobs: Sequence[Job], *, alone: bool = False) -> None:
        """Do jobs side by side, or one with all cores to itself."""
        self._runner(alone).run(jobs, self.progress)
        self.done += [step for job in jobs for step in job.steps]

    def _runner(self, alone: bool) -> Runner:
        folders = self.space.folders
        if self.options.ray is not None and not alone:
            from partition.making.ray_jobs import RayRunner

            return RayRunner(folders, self.options.ray, self.threads)
        if alone:
            return LocalRunner(folders, 1, self.all_threads)
        return LocalRunner(folders, self.jobs, self.threads)


def fits(fitted: Fitted, budgets: Sequence[Budget], beyond: Mapping[int, int]) -> bool:
    """Whether the artefacts, as they came out, fit the memory that the weights alone fit."""
    real = [
        replace(cost, memory=geometry.bytes + beyond[i])
        for i, (cost, geometry) in enumerate(zip(fitted.costs, fitted.geometries, strict=True))
    ]
    return all(
        load.budget.memory is None or load.memory <= load.budget.memory
        for load in loads_of(real, budgets, fitted.placement.device_of)
    )

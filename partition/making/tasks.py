"""The tasks that a step can be, by name; a process imports those that it does."""

from __future__ import annotations

from converters.jobs.kit import named
from partition.making.steps import Task

TASKS = {
    "probe": "partition.making.measure:make_probe",
    "measure": "partition.making.measure:measure",
    "classes": "partition.making.prune_tasks:measure_classes",
    "importance": "partition.making.prune_tasks:measure_importance",
    "prune": "partition.making.prune_tasks:prune",
    "train": "partition.making.train_tasks:train_submodel",
    "bundle": "partition.making.train_tasks:make_bundle",
    "fusion": "partition.making.fusion_tasks:train_head",
    "accuracy": "partition.making.fusion_tasks:measure_accuracy",
}


def task_of(name: str) -> Task:
    """The function that does a task."""
    task: Task = named(TASKS[name])
    return task

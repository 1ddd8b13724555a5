"""The tasks that a step can be, by name; a process imports those that it does."""

from __future__ import annotations

from importlib import import_module

from partition.steps import Task

TASKS = {
    "probe": "partition.measure:make_probe",
    "measure": "partition.measure:measure",
    "classes": "partition.prune_tasks:measure_classes",
    "importance": "partition.prune_tasks:measure_importance",
    "prune": "partition.prune_tasks:prune",
    "train": "partition.train_tasks:train_submodel",
    "bundle": "partition.train_tasks:make_bundle",
    "fusion": "partition.fusion_tasks:train_head",
    "accuracy": "partition.fusion_tasks:measure_accuracy",
}


def task_of(name: str) -> Task:
    """The function that does a task."""
    module, _, function = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), function)
    return task

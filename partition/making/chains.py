"""Which steps a plan takes, and what goes into each: everything that decides an output is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partition.making.steps import Step
from partition.options import PartitionOptions
from partition.placing.cluster_file import MEASURED, ClusterDevice, ClusterFile

IMPORTANCE_PICTURES = 2000  # of a sub-model's classes; UP-ViT's proxy set
CLASS_PICTURES = 200  # of one class, to split classes by what they need

Chain = tuple[Step, Step, Step, Step]
"""Of one sub-model: importance, pruning, fine-tuning, conversion."""


@dataclass(frozen=True)
class Ground:
    """What all steps stand on: the original model's step, the data, and what was asked.

    folder is that of the cluster file, states where trainings keep what they need to go on.
    """

    original: Step
    data: Mapping[str, Any]
    options: PartitionOptions
    cluster: ClusterFile
    folder: Path
    states: Path

    def classes_step(self) -> Step:
        """What each class needs, to split classes by."""
        settings = {**self.data, "pictures": CLASS_PICTURES, "seed": self.options.seed}
        return Step("classes", "classes", settings, {"original": self.original})

    def probe_step(self, heads: int, targets: Sequence[str], jobs: int) -> Step:
        """A slice of the model to measure devices with; jobs targets convert side by side."""
        settings = {"heads": heads, "targets": sorted(targets)}
        return Step("probe", "probe", settings, {"original": self.original}, {"jobs": jobs})

    def measure_step(self, device: ClusterDevice, probe: Step) -> Step:
        """The speed of one device. Local devices that run alike are one machine, measured once."""
        told = device.model_dump(mode="json", include={"name", "address", "targets", "threads"})
        told["compute"] = MEASURED
        if device.is_local:
            name = f"measure-local-{device.target}-{device.threads}"
            told |= {"name": "local", "targets": [device.target]}
        else:
            name = f"measure-{device.name}"
            told |= device.model_dump(mode="json", include={"tls", "token_file"})
        free = {"folder": str(self.folder)}
        return Step(name, "measure", {"device": told}, {"probe": probe}, free)

    def chain(
        self,
        index: int,
        classes: Sequence[int],
        heads: int,
        labels: Sequence[str],
        threads: int,
    ) -> Chain:
        """The steps of a sub-model. Its importance does not depend on how much it keeps."""
        options, name = self.options, f"sub{index}"
        own = {**self.data, "classes": list(classes), "seed": options.seed}
        importance = Step(
            f"{name}-importance",
            "importance",
            {**own, "pictures": IMPORTANCE_PICTURES},
            {"original": self.original},
        )
        pruned = Step(
            f"{name}-prune",
            "prune",
            {"heads": heads},
            {"original": self.original, "importance": importance},
        )
        trained = Step(
            f"{name}-train",
            "train",
            {**own, "epochs": options.epochs},
            {"original": self.original, "pruned": pruned},
        )
        state = str(self.states / trained.folder)
        trained = replace(trained, free={"threads": threads, "state": state})
        bundle = Step(
            f"{name}-convert",
            "bundle",
            {
                "name": name,
                "answer": options.answer,
                "targets": self.cluster.targets,
                "labels": [labels[c] for c in classes],
            },
            {"original": self.original, "trained": trained},
            {"jobs": threads},
        )
        return importance, pruned, trained, bundle

    def fusion_steps(
        self, chains: Sequence[Chain], device_of: Sequence[int], threads: int
    ) -> tuple[Step, Step]:
        """The fusion head, and the accuracy of all of it."""
        options, free = self.options, {"threads": threads}
        inputs = {"original": self.original}
        inputs |= {f"sub{i}": chain[2] for i, chain in enumerate(chains)}
        settings = {**self.data, "answer": options.answer, "seed": options.seed}
        told = {**settings, "epochs": options.fusion_epochs}
        fusion = Step("fusion", "fusion", told, inputs, free)
        settings |= {
            "lost": lost_sets(device_of),
            "targets": [self.cluster.devices[d].target for d in device_of],
        }
        inputs = {**inputs, "fusion": fusion}
        inputs |= {f"bundle{i}": chain[3] for i, chain in enumerate(chains)}
        return fusion, Step("accuracy", "accuracy", settings, inputs, free)


def lost_sets(device_of: Sequence[int]) -> list[list[int]]:
    """The sub-models that are gone together: each alone, and all of each device; never all."""
    alone = [(i,) for i in range(len(device_of))]
    together = [
        tuple(i for i, at in enumerate(device_of) if at == device) for device in set(device_of)
    ]
    sets = {lost for lost in (*alone, *together) if len(lost) < len(device_of)}
    return [list(lost) for lost in sorted(sets, key=lambda lost: (len(lost), lost))]

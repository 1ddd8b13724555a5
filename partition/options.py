"""What a person may ask of a partitioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from partition.errors import PartitionError
from partition.plan import Answer
from runtime.errors import RuntimeFault
from runtime.yaml_file import read_yaml

METHODS = ("balanced", "contiguous", "importance")
EXPLICIT = "explicit"


@dataclass(frozen=True)
class PartitionOptions:
    """What `edgevit partition` takes.

    split is a method, or a YAML file with the class names of each sub-model. keep is how many heads
    every sub-model keeps at most, None for as many as fit. size is the model's input, pixels.
    threads are those of each job and jobs how many run side by side (None: all cores are used); ray
    is the address of a Ray cluster, or 'local'.
    """

    split: str = "balanced"
    seed: int = 0
    keep: int | None = None
    epochs: int = 30
    fusion_epochs: int = 30
    answer: Answer = "features"
    size: int | None = None
    jobs: int | None = None
    ray: str | None = None
    threads: int | None = None
    force: bool = False

    @property
    def method(self) -> str:
        """The split's method; EXPLICIT for a file."""
        return self.split if self.split in METHODS else EXPLICIT


def explicit_classes(path: Path, names: Sequence[str]) -> list[list[int]]:
    """The classes of each sub-model from a YAML list of lists of class names, as indices.

    Raises PartitionError, also where `path` is neither a file nor a method.
    """
    if not path.is_file():
        near = get_close_matches(str(path), METHODS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise PartitionError(
            f"no such split: '{path}'; expected {', '.join(METHODS)}, or a file with a list of "
            f"class names for each sub-model.{hint}"
        )
    try:
        groups = read_yaml(path)
    except RuntimeFault as error:
        raise PartitionError(str(error)) from error
    if not isinstance(groups, list) or not groups or not all(isinstance(g, list) for g in groups):
        raise PartitionError(
            f"{path}: expected a list with a list of class names for each sub-model, as in "
            "[[cat, dog], [car]]"
        )
    known = {name: index for index, name in enumerate(names)}
    for name in (str(entry) for group in groups for entry in group):
        if name not in known:
            near = get_close_matches(name, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise PartitionError(
                f"{path}: the data has no class '{name}', it has: {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}.{hint}"
            )
    return [[known[str(entry)] for entry in group] for group in groups]

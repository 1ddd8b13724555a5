"""The model that is partitioned, and its data, as a job in another process gets them: by files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.data import Dataset, at_size, open_splits
from partition.cutting.geometry import Geometry, geometry_of, plain_vit
from partition.errors import PartitionError
from runtime.digest import sha256_file
from runtime.manifest import Preprocessing, Record

if TYPE_CHECKING:
    from converters.source import Source
    from edgevit.models.vit import VisionTransformer
    from edgevit.training import Preprocess

ABOUT, WEIGHTS = "original.json", "original.safetensors"
DATA_SEED = 0  # of the split, so that `edgevit eval` holds out the same pictures


class About(Record):
    """What original.json says. size is the input's side in pixels."""

    ref: str
    family: str | None
    weights: str
    weights_sha256: str
    size: int
    notes: list[str]
    preprocessing: Preprocessing
    geometry: Geometry


@dataclass(frozen=True)
class Original:
    """The model in eval mode, and what is known about it."""

    model: VisionTransformer
    about: About

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes its input, as edgevit.training takes it."""
        from edgevit.training import Preprocess

        pre = self.about.preprocessing
        return Preprocess(
            pre.height, pre.width, tuple(pre.mean), tuple(pre.std), pre.crop_pct, pre.interpolation
        )


def load_reference(model: str, weights: str | None, size: int | None, classes: int) -> Source:
    """The model with its weights. Raises PartitionError where it is none that can be partitioned.

    Also ConvertError and ModelError, from loading it.
    """
    from converters.chatter import chatter_to
    from converters.source import load_source

    with chatter_to(None):  # the model's own code may print
        source = load_source(model, weights=weights, size=size, classes=classes, settle=False)
    plain_vit(source.module)
    if not source.trained:
        raise PartitionError(
            f"'{source.ref}' has random weights or a random head ({source.weights}): train it "
            "first (edgevit train), and give its checkpoint with --weights"
        )
    return source


def save_original(source: Source, folder: Path) -> None:
    """Write the model's weights and what is known about it."""
    from edgevit.training.files import write_json, write_tensors

    about = About(
        ref=source.ref,
        family=source.family,
        weights=source.weights,
        weights_sha256=source.weights_sha256,
        size=plain_vit(source.module).input_size,
        notes=list(source.notes),
        preprocessing=source.preprocessing,
        geometry=geometry_of(source.module),
    )
    write_tensors(folder / WEIGHTS, source.module.state_dict())
    write_json(folder / ABOUT, about.model_dump(mode="json"))


def read_about(folder: Path) -> About:
    """What save_original wrote about the model."""
    return About.model_validate_json((folder / ABOUT).read_bytes())


def load_original(folder: Path) -> Original:
    """What save_original wrote."""
    from edgevit.models.vit import VisionTransformer
    from edgevit.training.files import read_tensors

    about = read_about(folder)
    wide = about.geometry
    model = VisionTransformer(
        wide.embed_dim, wide.depth, wide.heads, wide.classes, about.size,
        head_dim=wide.head_dim, mlp_dim=wide.mlp_dim,
    )  # fmt: skip
    model.load_state_dict(read_tensors(folder / WEIGHTS)[0])
    return Original(model.eval(), about)


def data_reference(ref: str) -> str:
    """The reference as another process in another folder can use it."""
    path = Path(ref)
    return str(path.resolve()) if path.exists() else ref


def data_for(settings: Mapping[str, Any], original: Original) -> tuple[Dataset, Dataset]:
    """The training and the held-out pictures that a step's settings name. Raises DataError."""
    pre = original.about.preprocessing
    train, test = open_splits(settings["data"], seed=DATA_SEED)
    return at_size(train, pre.height, pre.width), at_size(test, pre.height, pre.width)


def data_digest(ref: str, splits: tuple[Dataset, Dataset]) -> str:
    """sha256 over what the reference names: the .npz's bytes, or the folder's names and sizes."""
    path = Path(ref)
    told: list[object] = [[split.classes, len(split)] for split in splits]
    if path.is_file():
        told.append(sha256_file(path))
    elif path.is_dir():
        told.append(
            sorted(
                (file.relative_to(path).as_posix(), file.stat().st_size)
                for file in path.rglob("*")
                if file.is_file()
            )
        )
    else:
        told.append(ref)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()

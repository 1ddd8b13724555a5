"""Weights of another input size or class count, and random ones: what is changed, and the notes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import pictures, randomise
from torch import Tensor

from converters.errors import ConvertError
from converters.export import export_source
from converters.source import load_source
from edgevit.models import ModelError, create_model


def saved(folder: Path, name: str, classes: int) -> tuple[torch.nn.Module, Path]:
    """A random checkpoint of a zoo model, and the model."""
    model = randomise(create_model(name, num_classes=classes), 3)
    torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    return model, folder / f"{name}.pth"


def spread(module: torch.nn.Module, size: int) -> float:
    """The largest change of a logit between pictures."""
    with torch.no_grad():
        logits: Tensor = module(pictures(4, size, seed=2))
    return float((logits.amax(0) - logits.amin(0)).max())


# Another size


@pytest.mark.parametrize(
    ("name", "size", "note"),
    [
        ("efficientformer_l1", 256, "attention_biases resized from 7x7 to 8x8"),
        ("vit_tiny", 160, "pos_embed resized from 14x14 to 10x10"),
    ],
)
def test_tables_are_resized_once_and_noted(tmp_path: Path, name: str, size: int, note: str) -> None:
    model, file = saved(tmp_path, name, 6)
    source = load_source(name, weights=file, size=size, classes=6)
    assert source.notes == (note,) and source.trained
    assert (source.preprocessing.height, source.preprocessing.width) == (size, size)
    assert spread(source.module, size) > 0.1
    own, theirs = model.state_dict(), source.module.state_dict()
    changed = {n for n in own if n not in theirs or own[n].shape != theirs[n].shape}
    assert changed and all("attention_bias" in n or n == "pos_embed" for n in changed)
    assert all(torch.equal(own[n], theirs[n]) for n in own.keys() - changed)


def test_another_size_without_weights_settles_there() -> None:
    source = load_source("efficientformer_l1", size=160, classes=5)
    assert source.notes == () and source.weights == "random, seed 0"
    assert spread(source.module, 160) > 0.1
    graph = export_source(source)
    (logits,) = graph(torch.rand(1, 3, 160, 160))
    assert logits.shape == (5,)


# Another class count


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
def test_a_new_head_only_when_asked(tmp_path: Path, name: str) -> None:
    model, file = saved(tmp_path, name, 6)
    with pytest.raises(ModelError, match="`--classes 6` sets the count"):
        load_source(name, weights=file)
    torch.manual_seed(1)
    source = load_source(name, weights=file, classes=9)
    torch.manual_seed(2)
    again = load_source(name, weights=file, classes=9)
    (note,) = source.notes
    assert "re-initialised: the file has 6 classes, the model 9" in note
    assert source.num_classes == 9 and not source.trained
    assert source.weights == file.name
    own, theirs = model.state_dict(), source.module.state_dict()
    changed = {n for n in own if own[n].shape != theirs[n].shape}
    assert changed and all(n.startswith("head") for n in changed)
    assert all(torch.equal(own[n], theirs[n]) for n in own.keys() - changed)
    assert source.weights_sha256 == again.weights_sha256, "seeded"
    # Not all alike, and no class left out: each logit follows the picture.
    with torch.no_grad():
        logits = source.module(pictures(6, 224, seed=4))
    assert (logits.amax(0) - logits.amin(0)).min() > 1e-3


def test_the_same_count_keeps_the_head(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "shvit_s1", 6)
    source = load_source("shvit_s1", weights=file, classes=6)
    assert source.notes == () and source.trained


def test_a_path_as_text(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "shvit_s1", 6)
    source = load_source("shvit_s1", weights=str(file), classes=6)
    assert source.weights == "shvit_s1.pth"


# Unsettled


def test_unsettled_weights_are_the_familys_own() -> None:
    source = load_source("efficientformer_l1", classes=4, settle=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = create_model("efficientformer_l1", num_classes=4).state_dict()
    own = source.module.state_dict()
    assert all(torch.equal(fresh[name], own[name]) for name in fresh)
    assert (source.weights, source.trained) == ("random, seed 0", False)
    settled = load_source("efficientformer_l1", classes=4)
    assert settled.weights_sha256 != source.weights_sha256


def test_classes_of_a_timm_model(timm: object) -> None:
    assert timm
    with pytest.raises(ConvertError, match="--classes must be at least 1, got 0"):
        load_source("timm:mobilenetv3_small_050", classes=0)

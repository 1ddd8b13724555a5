"""The steps up to the fusion head, in this process, on a few digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomise

from converters.source import load_source
from edgevit.data import open_dataset
from edgevit.models.vit import VisionTransformer
from edgevit.training.files import read_tensors
from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.fusion_files import FusionHead
from partition.learning.fusion import Fusion
from partition.making.chains import Ground
from partition.making.fusion_tasks import FUSION, FUSION_NPZ
from partition.making.original import data_digest, load_original, save_original
from partition.making.prune_tasks import CLASSES, IMPORTANCE, read_kept
from partition.making.steps import Step, carry_out, output_of
from partition.making.tasks import task_of
from partition.making.train_tasks import SUBMODEL
from partition.options import PartitionOptions, explicit_classes
from partition.placing.cluster_file import ClusterFile

OWN = [1, 4, 7]


@dataclass(frozen=True)
class Shop:
    """The folder of the steps, and what they are made from."""

    steps: Path
    ground: Ground
    model: VisionTransformer

    def do(self, *steps: Step) -> Path:
        """Carry steps out; the output of the last."""
        for step in steps:
            carry_out(step.order(), task_of(step.task), self.steps, lambda share, text: None)
        return output_of(steps[-1], self.steps)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("tasks")
    digits = open_dataset("digits", "train", size=32)
    chosen = [digits[i] for i in range(150)]
    images, labels = np.stack([p for p, _ in chosen]), np.array([n for _, n in chosen])
    np.savez(folder / "some.npz", images=images, labels=labels)
    model = VisionTransformer(24, 2, 3, 10, 32)
    randomise(model, 0)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}
    original = Step("original", "original")
    steps = folder / "steps"
    steps.mkdir()

    def keep(settings: Any, inputs: Any, out: Path, tell: Any) -> None:
        save_original(load_source(model), out)

    carry_out(original.order(), keep, steps, lambda share, text: None)
    cluster = ClusterFile.model_validate({"devices": [{"name": "a", "compute": 1e9}]})
    data = {"data": str(folder / "some.npz"), "data_digest": "0"}
    options = PartitionOptions(epochs=1, fusion_epochs=2)
    ground = Ground(original, data, options, cluster, folder, folder / "states")
    return Shop(steps, ground, model)


def test_the_original_comes_back_as_it_was(shop):
    found = load_original(output_of(shop.ground.original, shop.steps))
    for name, value in shop.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    assert found.about.size == 32 and found.about.preprocessing.mean == [0.5] * 3
    assert found.preprocess.height == 32 and not found.model.training


def test_a_chain_ends_in_a_submodel_of_its_classes(shop):
    importance, pruned, trained, _ = shop.ground.chain(0, OWN, 2, list("0123456789"), 1)
    shop.do(importance)
    kept = read_kept(shop.do(pruned))
    assert len(kept.residual) == 16 and {len(row) for row in kept.heads} == {2}
    submodel = Submodel.load(shop.do(trained) / SUBMODEL)
    assert submodel.classes == tuple(OWN) and submodel.head.out_features == 4
    assert submodel.kept == kept
    cut = Submodel.cut(shop.model, kept, OWN)
    assert not torch.equal(submodel.head.weight, cut.head.weight), "it was not trained"


def test_importance_is_that_of_the_classes(shop):
    """Other classes, other scores; and the same scores again for the same classes."""
    found = {}
    for name, own in (("a", OWN), ("b", [0, 2]), ("c", OWN)):
        step = shop.ground.chain(0, own, 2, list("0123456789"), 1)[0]
        step = Step(f"{name}-importance", step.task, step.settings, step.inputs)
        found[name] = read_tensors(shop.do(step) / IMPORTANCE)[0]["residual"]
    assert torch.equal(found["a"], found["c"]) and not torch.equal(found["a"], found["b"])


def test_how_much_is_kept_does_not_change_the_importance(shop):
    few = shop.ground.chain(0, OWN, 1, list("0123456789"), 1)
    more = shop.ground.chain(0, OWN, 2, list("0123456789"), 2)
    assert few[0].digest == more[0].digest and few[1].digest != more[1].digest
    threads = shop.ground.chain(0, OWN, 2, list("0123456789"), 1)
    assert [s.digest for s in threads] == [s.digest for s in more]


def test_every_class_has_a_row_to_split_by(shop):
    rows = np.load(shop.do(shop.ground.classes_step()) / CLASSES)
    assert rows.shape == (10, 24 + 2 * 3) and (rows >= 0).all() and rows.std(0).min() > 0


def test_the_head_in_the_npz_is_that_of_torch(shop):
    chains = [
        shop.ground.chain(i, own, 1, list("0123456789"), 1)
        for i, own in enumerate([OWN, [0, 2, 3, 5, 6, 8, 9]])
    ]
    for chain in chains:
        shop.do(*chain[:3])
    fusion, _ = shop.ground.fusion_steps(chains, [0, 0], 1)
    out = shop.do(fusion)
    torch_head, head = Fusion.load(out / FUSION), FusionHead.load(out / FUSION_NPZ)
    assert torch_head.widths == (8, 8) and head.widths[0] == 16 and head.widths[-1] == 10
    blocks = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = torch_head(blocks).numpy()
    np.testing.assert_allclose(head(blocks.numpy()), want, rtol=1e-4, atol=1e-5)


def test_explicit_classes_by_name(tmp_path):
    names = ("cat", "dog", "7")
    path = tmp_path / "groups.yaml"
    path.write_text("[[dog, 7], [cat]]")
    assert explicit_classes(path, names) == [[1, 2], [0]]
    for text, said in (
        ("[[dog], [caat]]", "no class 'caat'.*Did you mean 'cat'"),
        ("{a: [dog]}", "expected a list with a list"),
        ("[dog, cat]", "expected a list with a list"),
        ("[[", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(PartitionError, match=said):
            explicit_classes(path, names)


def test_the_digest_of_data_is_over_what_is_there(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"12")
    digits = open_dataset("digits", "train"), open_dataset("digits", "test")

    def digest(ref: object) -> str:
        return data_digest(str(ref), digits)

    before = digest(tmp_path / "data")
    assert digest(tmp_path / "data") == before != digest("digits")
    (tmp_path / "data" / "cat" / "2.png").write_bytes(b"3")
    assert digest(tmp_path / "data") != before
    (tmp_path / "a.npz").write_bytes(b"a")
    first = digest(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"b")
    assert digest(tmp_path / "a.npz") != first

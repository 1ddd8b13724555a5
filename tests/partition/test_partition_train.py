"""Sub-models of a ViT trained on digits here: taught, fused, and some of them lost."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgevit.data import open_dataset, open_splits
from edgevit.data.digits import DigitsDataset
from edgevit.models.vit import VisionTransformer
from edgevit.training import Preprocess, Scores, Step, TrainOptions, train
from edgevit.training.loader import evaluation_batches
from partition.cutting.geometry import Keep
from partition.cutting.importance import class_importance, literal_importance
from partition.cutting.prune import prune
from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.learning.distill import Taught, Views, divergence, labels_of, own_logits, own_targets
from partition.learning.evaluate import evaluate
from partition.learning.train import TuneOptions, features_and_logits, fine_tune
from partition.learning.train_fusion import (
    FusionOptions,
    fit_fusion,
    train_fusion,
    training_answers,
)

SIDE = 32
PRE = Preprocess(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PARTS = ((0, 3, 5, 8), (1, 4, 7), (2, 6, 9))
VIEWS = Views(mixup=0.2)
TUNE = TuneOptions(VIEWS, epochs=12, lr=2e-3, threads=1)
FUSE = FusionOptions(VIEWS, passes=2, epochs=12, lr=2e-3, threads=1)


class Ready:
    """Digits as the model takes them, so that no time goes into pictures; what was read is kept."""

    def __init__(self, digits: DigitsDataset) -> None:
        self.classes, self.labels = digits.classes, digits.labels[digits.indices]
        whole = evaluation_batches(digits, PRE, len(digits), 0, 1)
        self.x = next(whole)[0].numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.x[index], int(self.labels[index])


Trained = tuple[VisionTransformer, Ready, Ready]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small ViT that knows the digits, and the digits for training and test."""
    data, test = map(Ready, open_splits("digits"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(48, 2, 4, 10, SIDE)
    options = TrainOptions(epochs=12, threads=1)
    result = train(vit, data, test, options, tmp_path_factory.mktemp("full") / "ckpt")
    assert result.best.scores.top1_percent > 90
    return vit, data, test


@pytest.fixture(scope="module")
def batches(trained: Trained) -> list[tuple[torch.Tensor, torch.Tensor]]:
    _, data, _ = trained
    few = torch.arange(256)
    return [
        (torch.from_numpy(data.x[part]), torch.from_numpy(data.labels[part]))
        for part in few.split(64)
    ]


@pytest.fixture(scope="module")
def cut(trained: Trained, batches) -> list[Submodel]:
    """Half of each of three sub-models left, not tuned yet; tests copy them."""
    vit, _, _ = trained
    return [Submodel.cut(vit, prune(vit, batches, Keep(2), part), part) for part in PARTS]


@pytest.fixture(scope="module")
def tuned(trained: Trained, cut) -> list[Submodel]:
    vit, data, _ = trained
    subs = copy.deepcopy(cut)
    for sub in subs:
        fine_tune(sub, vit, data, TUNE)
    return subs


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


@torch.no_grad()
def right(sub: Submodel, data: Ready) -> float:
    """The share of held-out pictures that a sub-model puts into the right one of its logits."""
    hits = []
    for x, labels in evaluation_batches(data, None, 64, 0, 1):
        truth = [sub.classes.index(y) + 1 if y in sub.classes else 0 for y in labels]
        hits.append(sub.head(sub.features(x)).argmax(1) == torch.tensor(truth))
    return float(torch.cat(hits).float().mean())


def test_what_gates_say_ranks_as_leaving_out_does(trained, batches):
    """Rank correlation with the literal measure, on a trained model, for the classes of a part.

    Eight heads are too few to rank; benchmarks/edvit_importance.py has them.
    """
    vit, _, _ = trained
    fast = class_importance(vit, batches[:2], PARTS[0])
    slow = literal_importance(vit, batches[:2], PARTS[0])
    assert fast.pictures == slow.pictures < 128
    for name in ("residual", "ffn"):
        both = torch.stack([getattr(each, name).flatten() for each in (fast, slow)])
        ranks = both.argsort(1).argsort(1).double()
        assert float(torch.corrcoef(ranks)[0, 1]) >= 0.8, name


def test_it_is_taught_its_classes_and_a_tenth_of_each_other(trained):
    _, data, _ = trained
    labels = labels_of(data)
    assert np.array_equal(labels, labels_of(open_splits("digits")[0]))
    taught = Taught(data, (3, 7), 0.1, seed=4)
    seen = np.bincount([taught[i][1] for i in range(len(taught))], minlength=10)
    for label, count in enumerate(np.bincount(labels)):
        assert seen[label] == (count if label in (3, 7) else round(0.1 * count))
    assert len(set(taught.indices.tolist())) == len(taught)
    assert np.array_equal(taught.indices, Taught(data, (3, 7), 0.1, seed=4).indices)
    assert not np.array_equal(taught.indices, Taught(data, (3, 7), 0.1, seed=5).indices)
    assert set(labels[Taught(data, (3, 7), 0.0, seed=4).indices]) == {3, 7}


def test_labels_are_read_from_any_data():
    class Few:
        classes = ("a", "b")

        def __init__(self, labels: list[object]) -> None:
            self.labels_given = labels

        def __len__(self) -> int:
            return len(self.labels_given)

        def __getitem__(self, index: int) -> tuple[np.ndarray, object]:
            return np.zeros((2, 2, 3), np.uint8), self.labels_given[index]

    assert labels_of(Few([1, 0, 1])).tolist() == [1, 0, 1]
    glyphs = open_dataset("glyphs:10:2", "test")
    assert labels_of(glyphs).tolist() == [glyphs[i][1] for i in range(len(glyphs))]
    with pytest.raises(PartitionError, match="one class as the label of every picture"):
        labels_of(Few([np.array([0.5, 0.5]), np.array([1.0, 0.0])]))


def test_labels_of_a_folder_are_known_without_its_pictures(tmp_path: Path):
    for name, count in (("cat", 3), ("dog", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").touch()  # no picture, and none is read
    assert labels_of(open_dataset(str(tmp_path), "all")).tolist() == [0, 0, 0, 1, 1]


def test_the_rest_of_the_full_models_answer_is_the_others_logit():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    found = own_logits(logits, (5, 2), other=True).softmax(1)
    together = torch.stack([p[:, 0] + p[:, 1] + p[:, 3] + p[:, 4], p[:, 5], p[:, 2]], 1)
    torch.testing.assert_close(found, together)
    torch.testing.assert_close(own_targets(p, (5, 2), other=True), together)
    alone = own_targets(p, (5, 2), other=False)
    torch.testing.assert_close(alone, logits[:, [5, 2]].softmax(1))
    torch.testing.assert_close(own_logits(logits, (5, 2), other=False).softmax(1), alone)
    everyone = (3, 0, 1, 2, 5, 4)
    assert float(own_logits(logits, everyone, other=True).softmax(1)[:, 0].max()) == 0
    theirs = torch.randn(4, 3, dtype=torch.float64)
    by_hand = (found * (found.log() - F.log_softmax(theirs / 2, 1))).sum(1).mean() * 4
    torch.testing.assert_close(divergence(theirs, found, 2.0), by_hand)
    torch.testing.assert_close(
        divergence(theirs, torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]], 1.0),
        F.cross_entropy(theirs, torch.tensor([0, 1, 2, 0])),
    )


def test_tuning_brings_back_what_slicing_took(trained, cut, tuned):
    _, _, test = trained
    before = [right(sub, test) for sub in cut]
    after = [right(sub, test) for sub in tuned]
    assert min(after) > 0.9 and all(a > b + 0.1 for a, b in zip(after, before, strict=True))
    assert all(not sub.training for sub in tuned)


def test_a_run_is_its_seeds_and_leaves_the_full_model_alone(trained, cut):
    vit, data, _ = trained
    before = weights(vit)
    short = replace(TUNE, epochs=2)
    found = []
    for options in (short, short, replace(short, views=replace(VIEWS, seed=1))):
        sub = copy.deepcopy(cut[1])
        result = fine_tune(sub, vit, data, options)
        found.append(weights(sub))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(weights(vit), before)
    assert result.pictures == len(Taught(data, PARTS[1], 0.1, seed=1)) and result.loss > 0


def test_a_stopped_run_goes_on_to_the_same_weights(trained, cut, tmp_path: Path):
    vit, data, _ = trained
    short = replace(TUNE, epochs=3)
    straight, stopped, again = (copy.deepcopy(cut[2]) for _ in range(3))
    fine_tune(straight, vit, data, short)

    def stop(event: object) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (3, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(stopped, vit, data, short, state=tmp_path, progress=stop)
    told: list[int] = []
    fine_tune(again, vit, data, short, state=tmp_path, progress=lambda e: told.append(e.epoch))
    assert set(told) == {3}
    torch.testing.assert_close(weights(again), weights(straight), rtol=0, atol=0)
    with pytest.raises(PartitionError, match=r"begun otherwise: .*temperature was 2.0, now 3.0"):
        fine_tune(again, vit, data, replace(short, temperature=3.0), state=tmp_path)
    with pytest.raises(PartitionError, match="submodel_classes was"):
        other = copy.deepcopy(cut[2])
        other.classes = (0, 1, 2)
        fine_tune(other, vit, data, short, state=tmp_path)


def test_features_come_nearer_to_the_full_models(trained, cut, batches):
    vit, data, _ = trained
    x, _ = batches[0]
    theirs, logits = features_and_logits(vit, x)
    torch.testing.assert_close(vit.head(theirs), logits)

    def apart(weight: float) -> float:
        sub = copy.deepcopy(cut[0])
        fine_tune(sub, vit, data, replace(TUNE, epochs=3, feature_weight=weight))
        with torch.no_grad():
            return float(F.mse_loss(sub(x), theirs[:, list(sub.kept.residual)]))

    assert apart(3.0) < 0.7 * apart(0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"other_share": 1.5}, "other_share must be 0 to 1, got 1.5"),
        ({"feature_weight": -1.0}, "feature_weight must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"views": replace(VIEWS, crop_area=0.0)}, "crop_area must be 0.01 to 1"),
    ],
)
def test_senseless_options_are_refused(trained, cut, changed, message):
    vit, data, _ = trained
    with pytest.raises(PartitionError, match=message):
        fine_tune(copy.deepcopy(cut[0]), vit, data, replace(TUNE, **changed))


def test_what_cannot_be_taught_is_refused(trained, cut):
    vit, data, _ = trained
    alone = Submodel.cut(vit, cut[0].kept, (4,), other=False)
    with pytest.raises(PartitionError, match="one class without a logit for the others"):
        fine_tune(alone, vit, data, TUNE)
    with pytest.raises(PartitionError, match="the full model has 3 classes and the data 10"):
        fine_tune(cut[0], VisionTransformer(48, 1, 4, 3, SIDE), data, TUNE)
    with pytest.raises(PartitionError, match=r"block_dropout must be 0 to 0.95, got 1"):
        train_fusion(cut, vit, data, replace(FUSE, block_dropout=1.0))
    with pytest.raises(PartitionError, match="at least one sub-model"):
        train_fusion([], vit, data, FUSE)


def test_the_fusion_is_near_the_full_model_and_survives_losses(trained, tuned):
    vit, data, test = trained
    before = [weights(sub) for sub in tuned]
    fusion = train_fusion(tuned, vit, data, FUSE)
    assert all(torch.equal(weights(sub), w) for sub, w in zip(tuned, before, strict=True))
    plain = train_fusion(tuned, vit, data, replace(FUSE, block_dropout=0.0))
    sets = [(), (0,), (1,), (2,), (2, 0)]
    ours, theirs = (
        evaluate(vit, tuned, head, test, None, lost=sets, threads=1).fused
        for head in (fusion, plain)
    )
    full = evaluate(vit, tuned, fusion, test, None).full
    assert ours[()].top1_percent >= full.top1_percent - 4
    assert list(ours) == [(), (0,), (1,), (2,), (0, 2)]
    assert sum(s.top1 for s in ours.values()) > sum(s.top1 for s in theirs.values()) + 20
    answers = training_answers(tuned, vit, data, VIEWS, 1)
    twice = [fit_fusion(fusion.widths, answers, replace(FUSE, epochs=1)) for _ in range(2)]
    assert torch.equal(weights(twice[0]), weights(twice[1]))


def test_pictures_of_bytes_are_shown_in_other_views_each_pass(trained, tuned):
    vit, _, _ = trained
    digits = open_splits("digits")[1]
    views = Views(PRE, crop_area=0.8, mixup=0.0)
    answers = training_answers(tuned, vit, digits, views, 2)
    first, second = answers.full.chunk(2)
    assert len(first) == len(digits) // 64 * 64
    apart = (first.sort(0).values - second.sort(0).values).abs()
    assert float(apart.median()) > 1e-3  # other pictures, not the same in another order
    assert torch.equal(answers.full, training_answers(tuned, vit, digits, views, 2).full)


@torch.no_grad()
def test_the_scores_are_those_of_running_everything_by_hand(trained, tuned):
    vit, data, test = trained
    subs = copy.deepcopy(tuned)
    for sub in subs:
        sub.answer = "logits"
    fusion = train_fusion(subs, vit, data, replace(FUSE, epochs=2, passes=1))
    assert fusion.widths == (5, 4, 4)
    found = evaluate(vit, subs, fusion, test, None, lost=[(1,), (0, 1, 2)], threads=1)
    batches = list(evaluation_batches(test, None, len(test), 0, 1))
    x, truth = batches[0][0], torch.tensor(batches[0][1])
    blocks = torch.cat([subs[0](x), torch.zeros(len(x), 4), subs[2](x)], 1)
    logits = fusion(blocks)
    seen = torch.tensor([int(y) not in PARTS[1] for y in truth])
    for got, keep in ((found.fused[(1,)], torch.ones_like(seen)), (found.sighted[(1,)], seen)):
        top5 = (logits[keep].topk(5).indices == truth[keep][:, None]).any(1)
        loss = float(F.cross_entropy(logits[keep], truth[keep]))
        expected = Scores(
            int(keep.sum()), int((logits.argmax(1) == truth)[keep].sum()), int(top5.sum()), loss
        )
        assert (got.count, got.top1, got.top5) == (expected.count, expected.top1, expected.top5)
        assert got.loss == pytest.approx(loss, rel=1e-4)
    assert found.full.top1 == int((vit(x).argmax(1) == truth).sum())
    assert (0, 1, 2) not in found.sighted  # no class is left that anybody knows

"""The elastic EfficientFormerV2 against plain networks, and its training."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import error_over_spread, pictures
from safetensors.torch import load_file
from slim_v2_nets import CLASSES, FAMILY, SHAPE, SIDE, WHOLE, random_supernet, subnets
from torch import Tensor

from converters.slim.candidates import unknown_importance
from converters.slim.errors import SlimError
from converters.slim.families.base import Subnet
from converters.slim.families.efficientformerv2_space import smallest
from converters.slim.supernets.efficientformerv2 import EfficientFormerV2Supernet, SwitchedNorm
from edgevit.models.efficientformerv2 import EfficientFormerV2, EfficientFormerV2Shape
from edgevit.training import Preprocess, TrainingInterrupted, TrainOptions, train
from edgevit.training.optimizer import decay_groups
from edgevit.training.state import STATE

UNKNOWN = unknown_importance(WHOLE)


def inherited(net: EfficientFormerV2Supernet, subnet: Subnet) -> EfficientFormerV2:
    module = FAMILY.inherit(net, subnet, UNKNOWN, CLASSES, SIDE)
    assert isinstance(module, EfficientFormerV2)
    return module


@pytest.mark.parametrize("subnet", [WHOLE, smallest(SHAPE), *subnets(6, seed=1)], ids=repr)
def test_an_inherited_subnet_is_the_supernet_at_that_setting(subnet: Subnet) -> None:
    net, images = random_supernet(seed=2), pictures(4, SIDE, seed=3)
    plain = inherited(net, subnet)
    assert plain.shape == subnet.shape and not plain.training
    with torch.no_grad():
        assert error_over_spread(net.run(images, subnet), plain(images)) <= 1e-5


def test_in_eval_it_is_the_largest_whatever_ran_before() -> None:
    net, images = random_supernet(seed=4), pictures(4, SIDE, seed=5)
    with torch.no_grad():
        net.run(images, smallest(SHAPE))
        assert error_over_spread(net(images), inherited(net, WHOLE)(images)) <= 1e-5


def test_trained_at_one_setting_it_is_the_plain_network_trained() -> None:
    """Logits, gradients of shared weights, and BatchNorm's statistics."""
    (subnet,) = subnets(1, seed=6)
    net, images = random_supernet(seed=7), pictures(8, SIDE, seed=8)
    plain = inherited(net, subnet).train()
    logits = net.train().run(images, subnet)
    first, second = plain(images)
    assert error_over_spread(logits, (first + second) / 2) <= 1e-5
    labels = torch.arange(8)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy((first + second) / 2, labels).backward()
    ours = net.stem.conv2.conv.weight.grad
    theirs = plain.stem.conv2.conv.weight.grad
    assert ours is not None and theirs is not None
    out, into = theirs.shape[:2]
    assert torch.allclose(ours[:out, :into], theirs, atol=1e-5)
    assert not ours[out:].any() and not ours[:, into:].any()
    again = inherited(net.eval(), subnet).state_dict()
    for name, value in plain.state_dict().items():
        if "running" in name:
            assert torch.allclose(again[name], value, atol=1e-5), name


def test_batch_norms_of_different_widths_are_apart() -> None:
    """What one subnet leaves there, no other width reads; the same width does."""
    net, images = random_supernet(seed=9), pictures(8, SIDE, seed=10)
    narrow = Subnet(replace(SHAPE, widths=(8, 16, 16, 24)), WHOLE.blocks)
    before = {s: inherited(net, s).state_dict() for s in (WHOLE, narrow)}
    net.train().run(images, narrow)
    net.eval()
    after = {s: inherited(net, s).state_dict() for s in (WHOLE, narrow)}
    for name, value in after[WHOLE].items():
        assert torch.equal(value, before[WHOLE][name]), name
    moved = [n for n, v in after[narrow].items() if not torch.equal(v, before[narrow][n])]
    means = [n for n in after[narrow] if n.endswith("running_mean")]
    assert set(means) <= set(moved)


def test_batch_norms_hold_every_combination_of_the_widths_around_them() -> None:
    net = random_supernet(seed=0)
    sizes = {n: m.sizes for n, m in net.named_modules() if isinstance(m, SwitchedNorm)}
    assert sizes["stem.conv1.bn"] == {(8,): 4, (16,): 8}
    assert sizes["stages.1.downsample.conv.bn"] == {
        (8, 16): 16, (8, 24): 24, (16, 16): 16, (16, 24): 24,
    }  # fmt: skip
    assert sizes["stages.1.blocks.0.mlp.mid.bn"] == {(16,): 32, (24,): 48}
    assert sizes["stages.1.blocks.0.mlp.fc2.bn"] == {
        (16, 16): 16, (16, 32): 16, (24, 24): 24, (24, 48): 24,
    }  # fmt: skip
    assert sizes["stages.3.blocks.1.token_mixer.v_local.bn"] == {
        (16,): 1024,
        (24,): 1024,
        (32,): 1024,
    }


def test_the_sandwich_always_has_the_largest_and_the_smallest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, images = random_supernet(seed=11), pictures(4, SIDE, seed=12)
    ran: list[Subnet] = []
    run = net.run

    def listening(x: Tensor, subnet: Subnet) -> Tensor:
        ran.append(subnet)
        return run(x, subnet)

    monkeypatch.setattr(net, "run", listening)
    drawn: set[Subnet] = set()
    for step in range(4):
        torch.manual_seed(step)
        ran.clear()
        outputs = net.train()(images)
        assert isinstance(outputs, tuple) and [o.shape for o in outputs] == [(4, CLASSES)] * 4
        assert ran[:2] == [WHOLE, smallest(SHAPE)]
        drawn |= set(ran[2:])
    assert len(drawn) >= 6


def test_every_parameter_has_a_gradient_and_no_vector_decays() -> None:
    """An exact resume counts AdamW's steps once for all parameters."""
    net, images = random_supernet(seed=13), pictures(4, SIDE, seed=14)
    outputs = net.train()(images)
    sum(o.square().sum() for o in outputs).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    decayed, _ = decay_groups(net)
    assert decayed and all(name.endswith("weight") for name in decayed)
    norms = {n for n, m in net.named_modules() if isinstance(m, SwitchedNorm)}
    assert not {name.rpartition(".")[0] for name in decayed} & norms


def test_what_is_no_part_of_it_is_refused() -> None:
    net = random_supernet(seed=15)
    other = Subnet(replace(SHAPE, widths=(12, 24, 24, 32)), WHOLE.blocks)
    with pytest.raises(SlimError, match="is no subnet of"):
        net.run(pictures(2, SIDE, 0), other)
    with pytest.raises(SlimError, match="is no subnet of"):
        inherited(net, other)


class Discs:
    """Pictures of a disc, a ring or neither, on noise; normalised floats."""

    classes = ("disc", "ring", "none")

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:SIDE, :SIDE]
        self.labels = rng.integers(3, size=count)
        self.images = rng.integers(0, 120, (count, SIDE, SIDE, 3)).astype(np.uint8)
        for image, label in zip(self.images, self.labels, strict=True):
            at = rng.integers(10, SIDE - 10, 2)
            far = np.hypot(y - at[0], x - at[1])
            if label < 2:
                image[(far < 9) & (far > (0 if label == 0 else 6))] = 220

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


SMALL = EfficientFormerV2Shape((8, 16, 16, 16), ((1,), (2,), (1, 2), (1, 1)), (1, 1))
PRE = Preprocess(SIDE, SIDE, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))


def small_supernet() -> EfficientFormerV2Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EfficientFormerV2Supernet(SMALL, 3, SIDE)


def options(**changed: object) -> TrainOptions:
    return TrainOptions(
        **{"preprocess": PRE, "epochs": 2, "batch": 8, "warmup_epochs": 1, "threads": 1} | changed
    )  # type: ignore[arg-type]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    data = Discs(32, 1), Discs(8, 2)
    train(small_supernet(), *data, options(), tmp_path / "whole")

    def stop(event: object) -> None:
        if (getattr(event, "epoch", 0), getattr(event, "step", 0)) == (1, 3):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        train(small_supernet(), *data, options(), tmp_path / "cut", progress=stop)
    torch.rand(7)
    train(small_supernet(), *data, options(resume=True), tmp_path / "cut")
    for name in ("model.safetensors", STATE):
        ours, theirs = (load_file(tmp_path / run / name) for run in ("cut", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_a_trained_supernet_holds_subnets_that_work(tmp_path: Path) -> None:
    """With the weights and statistics that they have there, the largest and smaller ones."""
    data, held = Discs(192, 3), Discs(120, 4)
    net = small_supernet()
    train(net, data, held, options(epochs=4, batch=16, ema_epochs=0, lr=3e-3), tmp_path / "out")
    whole = FAMILY.whole(SMALL)
    importance = unknown_importance(whole)
    mean = torch.tensor(PRE.mean).view(1, 3, 1, 1)
    std = torch.tensor(PRE.std).view(1, 3, 1, 1)
    x = torch.from_numpy(held.images).permute(0, 3, 1, 2) / 255.0
    images, labels = (x - mean) / std, torch.from_numpy(held.labels)
    narrow = Subnet(replace(SMALL, widths=(8, 8, 8, 8)), whole.blocks)
    for subnet in (whole, narrow, smallest(SMALL)):
        plain = FAMILY.inherit(net, subnet, importance, 3, SIDE)
        with torch.no_grad():
            hits = (plain(images).argmax(1) == labels).float().mean()
        assert hits > 0.6, f"{subnet}: {hits}"  # a guess has a third

"""The MetaPath supernet: its weights and noise by hand, what it learns, and its resume."""

from __future__ import annotations

import copy
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientformer_tools import FAMILY, SHAPE, SIDE, supernet
from safetensors.torch import load_file
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.supernets.efficientformer import EfficientFormerSupernet, MetaBlock
from edgevit.models import ModelError
from edgevit.models.efficientformer import EfficientFormerShape
from edgevit.training import EpochRow, Preprocess, TrainingInterrupted, TrainOptions, train
from edgevit.training.optimizer import decay_groups
from edgevit.training.state import STATE

TINY = EfficientFormerShape((16, 16, 16, 16), (1, 2, 2, 1), (0, 0, 0, 1))
TINY_SIDE = 32


class Stripes:
    """Pictures with stripes across, upright or slanting; a noisy ground."""

    classes = ("across", "upright", "slanting")

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(3, size=count)
        y, x = np.mgrid[:TINY_SIDE, :TINY_SIDE]
        along = np.stack([y, x, (x + y) / 2])[self.labels]
        waves = 100 * np.sin(0.8 * along + rng.uniform(0, 6, (count, 1, 1)))
        noise = rng.normal(0, 40, (count, TINY_SIDE, TINY_SIDE, 3))
        self.images = (128 + waves[..., None] + noise).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


class Noise(nn.Module):
    """A block that only does harm."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + 2 * torch.randn_like(x_BCHW)


def tiny(seed: int = 0, **kwargs: str) -> EfficientFormerSupernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EfficientFormerSupernet(TINY, 3, TINY_SIDE, **kwargs)


def options(**changed: object) -> TrainOptions:
    """Steps of 16 pictures: eight an epoch, of 128."""
    pre = Preprocess(TINY_SIDE, TINY_SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    told = {"preprocess": pre, "batch": 16, "warmup_epochs": 1, "lr": 4e-3} | changed
    return TrainOptions(**told)  # type: ignore[arg-type]


def test_what_may_stand_where() -> None:
    model = FAMILY.supernet(SHAPE, 10, SIDE)
    paths = [[block.paths for block in stage] for stage in model.metas()]
    early, late = ("pool", "identity"), ("pool", "attention", "identity")
    assert paths == [[early] * 2, [early] * 2, [late] * 3, [late] * 3]
    assert model.shape == replace(SHAPE, attention_depths=(0, 0, 3, 3))
    assert list(FAMILY.supernet(model.shape, 10, SIDE).state_dict()) == list(model.state_dict())


def test_a_meta_block_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    block, x = MetaBlock(8, 4, attends=True).eval(), torch.randn(2, 8, 4, 4)
    for scale in (block.pool.ls1, block.pool.ls2, block.attention.ls1, block.attention.ls2):
        nn.init.uniform_(scale.gamma, 0.5, 1.0)
    tokens = block.attention(x.reshape(2, 8, 16).permute(0, 2, 1))
    as_map = tokens.permute(0, 2, 1).reshape(2, 8, 4, 4)
    want = 0.2 * block.pool(x) + 0.7 * as_map + 0.1 * x
    assert torch.allclose(block(x, torch.tensor([0.2, 0.7, 0.1])), want, atol=1e-6)
    assert (block.pool(x) - as_map).abs().max() > 0.1


@pytest.mark.parametrize("noise", ["gumbel", "uniform"])
def test_the_weights_in_training(noise) -> None:
    """softmax((alpha + noise) / tau), the noise as the paper prints it, or as Gumbel has it."""
    model = tiny(noise=noise).train()
    alpha = torch.tensor([0.3, -0.2, 0.1])
    torch.manual_seed(3)
    drawn = torch.stack([model._weights(alpha, 0.7) for _ in range(4000)])
    assert torch.allclose(drawn.sum(1), torch.ones(4000))
    logs = 0.7 * drawn.log()
    # Differences of noise: the softmax takes their sum away.
    found = (logs[:, 0] - logs[:, 1] - 0.5).double()
    spread = math.pi / math.sqrt(3) if noise == "gumbel" else math.sqrt(1 / 6)
    assert abs(float(found.mean())) < 0.1 * spread
    assert float(found.std()) == pytest.approx(spread, rel=0.05)
    largest = 1.0 if noise == "uniform" else math.inf
    assert float(found.abs().max()) <= largest + 1e-5
    # The Gumbel-max trick: each path wins as often as softmax(alpha) says.
    if noise == "gumbel":
        wins = drawn.argmax(1).bincount(minlength=3) / 4000
        assert torch.allclose(wins, alpha.softmax(0), atol=0.03)


def test_no_noise_and_no_count_in_evaluation() -> None:
    model, x = supernet(), torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert int(model.steps_taken) == 0 and isinstance(model(x), Tensor)
    model.train()
    first, second = model(x)
    assert first.shape == second.shape == (2, 10) and int(model.steps_taken) == 1
    again, _ = model(x)
    assert not torch.equal(first, again)
    torch.manual_seed(5)
    one = model(x)[0]
    torch.manual_seed(5)
    model.steps_taken -= 1
    assert torch.equal(model(x)[0], one)


def test_tau_falls_geometrically_and_stays() -> None:
    model = tiny()
    model.anneal_over(4)
    taus = []
    for step in (0, 2, 4, 9):
        model.steps_taken.fill_(step)
        taus.append(model.tau())
    assert taus == pytest.approx([5.0, math.sqrt(5.0 * 0.5), 0.5, 0.5])
    with pytest.raises(SlimError, match="at least 1 training step"):
        model.anneal_over(0)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: EfficientFormerSupernet(TINY, 3, 40), ModelError, "multiple of 32"),
        (lambda: tiny(noise="normal"), SlimError, "unknown noise 'normal'"),
        (lambda: tiny()(torch.zeros(1, 3, 64, 64)), ModelError, r"shape \(B, 3, 32, 32\)"),
    ],
)
def test_what_it_does_not_take(make, error, said) -> None:
    with pytest.raises(error, match=said):
        make()


def test_alphas_and_layer_scales_do_not_decay() -> None:
    model = tiny()
    decayed, spared = decay_groups(model)
    alphas = {name for name, _ in model.named_parameters() if name.endswith("alpha")}
    assert len(alphas) == 6 and alphas <= set(spared)
    assert not any("gamma" in name or "attention_biases" in name for name in decayed)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> EfficientFormerSupernet:
    """Trained with a block that only does harm."""
    model = tiny()
    model.stages[1].blocks[1].pool = Noise()
    model.anneal_over(8 * 8)
    out = tmp_path_factory.mktemp("learnt") / "out"
    data = Stripes(128, 1), Stripes(60, 2)
    result = train(model, *data, options(epochs=8, ema_epochs=0, threads=1), out)
    model.top1 = result.rows[-1].top1
    return model


def test_it_learns_in_a_few_epochs_and_its_alphas_with_it(learnt) -> None:
    assert learnt.top1 > 80
    for block in (block for stage in learnt.metas() for block in stage):
        assert float(block.alpha.detach().abs().max()) > 0.01


def test_nothing_is_better_than_a_damaged_block(learnt) -> None:
    sound, damaged = (block.alpha.detach() for block in learnt.metas()[1])
    assert damaged[1] - damaged[0] > 0.1
    assert damaged[1] - damaged[0] > sound[1] - sound[0]


def test_importance_is_the_ratio_of_the_paper(learnt) -> None:
    model = copy.deepcopy(learnt)
    model.stages[1].blocks[1].pool = tiny().stages[1].blocks[1].pool
    x = torch.from_numpy(Stripes(8, 3).images).permute(0, 3, 1, 2) / 128 - 1.0
    importance = FAMILY.importance(model, [(x, torch.tensor(Stripes(8, 3).labels))])
    for stage, blocks in enumerate(importance.blocks):
        for index, got in enumerate(blocks):
            share = model.stages[stage].blocks[index].alpha.detach().exp()
            assert got == pytest.approx(float(share[:-1].sum() / share[-1]), rel=1e-5)
    assert importance.blocks[1][1] < importance.blocks[1][0]
    subnet = FAMILY.whole(model.shape)
    drops = [a for a in FAMILY.actions(subnet, importance) if (a.kind, a.stage) == ("drop", 1)]
    assert [action.block for action in drops] == [1]
    smaller = FAMILY.apply(subnet, drops[0], importance)
    assert FAMILY.inherit(model, smaller, importance, 3, TINY_SIDE)(x).shape == (8, 3)


class Stop:
    """A listener that asks to stop, by a real signal, after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def __call__(self, event: object) -> None:
        if not isinstance(event, EpochRow) and (event.epoch, event.step) == self.at:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path) -> None:
    data = Stripes(64, 1), Stripes(16, 2)

    def run(name: str, **told: object) -> EfficientFormerSupernet:
        model = tiny()
        model.anneal_over(8)
        torch.rand(7 if told else 1)  # nothing may hang on torch's own random state
        progress = {"progress": told.pop("progress")} if "progress" in told else {}
        train(model, *data, options(epochs=2, threads=1, **told), tmp_path / name, **progress)
        return model

    whole = run("whole")
    with pytest.raises(TrainingInterrupted):
        run("cut", progress=Stop(2, 1))
    resumed = run("cut", resume=True)
    for file in ("model.safetensors", STATE):
        ours, theirs = load_file(tmp_path / "cut" / file), load_file(tmp_path / "whole" / file)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    state = load_file(tmp_path / "cut" / STATE)
    assert int(state["model.steps_taken"]) == int(state["model.anneal_steps"]) == 8
    assert all(
        torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items()
    )

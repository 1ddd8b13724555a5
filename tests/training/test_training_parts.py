"""Schedule, decay groups, mixup, targets, moving average, augmentation: each against a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from tiny_training import PRE, net, options
from torch import nn

from edgevit.models import create_model
from edgevit.training import TrainingError, TrainOptions
from edgevit.training.augment import augmented, moved, random_box
from edgevit.training.ema import Ema
from edgevit.training.mixup import mixed, soft_loss, targets_of
from edgevit.training.optimizer import build_optimizer, decay_groups
from edgevit.training.schedule import learning_rate


def test_schedule_against_its_closed_form():
    rates = [learning_rate(s, 110, 10, 0.5, 0.1) for s in range(110)]
    np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11))
    share = np.arange(100) / 100
    want = 0.5 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)
    np.testing.assert_allclose(rates[10:], want)
    assert rates[60] == pytest.approx(0.5 * 0.55)  # half-way between the peak and the end
    assert learning_rate(0, 1, 1, 0.5, 0.1) == 0.5  # nothing but warm-up


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
def test_what_decays_is_the_weights_of_convolutions_and_linear_maps(name):
    with torch.device("meta"):
        model = create_model(name)
    decayed, spared = decay_groups(model)
    layers = (nn.Conv2d, nn.Linear)
    want = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, layers)}
    assert set(decayed) == want
    assert set(spared) == {n for n, _ in model.named_parameters()} - want


def test_tables_scales_and_frozen_parameters_do_not_decay():
    module = nn.Module()
    for name, shape in {
        "attention_biases": (8, 49),
        "pos_embed": (1, 5, 12),
        "scale": (12, 1, 1),
        "kernel": (4, 4),
        "one": (1, 1),
    }.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    module.register_parameter("frozen", nn.Parameter(torch.ones(3, 3), requires_grad=False))
    decayed, spared = decay_groups(module)
    assert decayed == ["kernel"]
    assert spared == ["attention_biases", "pos_embed", "scale", "one"]


def test_optimizer_decays_by_its_formula():
    """With no gradient AdamW only shrinks the weights that decay: by lr x decay."""
    module = randomise(net(), 1)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    adamw = build_optimizer(module, lr=0.1, weight_decay=0.2)
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    adamw.step()
    for name, value in module.named_parameters():
        factor = 0.98 if name.endswith("weight") and "norm" not in name else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_targets():
    soft = np.array([0.2, 0.5, 0.3], dtype=np.float32)
    got = targets_of([2, soft], 3, smoothing=0.3)
    torch.testing.assert_close(got, torch.tensor([[0.1, 0.1, 0.8], [0.2, 0.5, 0.3]]))
    with pytest.raises(TrainingError, match="label 3, expected 0 to 2"):
        targets_of([3], 3, 0.0)
    with pytest.raises(TrainingError, match=r"soft target has shape \(2,\), expected \(3,\)"):
        targets_of([soft[:2]], 3, 0.0)


def test_mixup_is_one_blend_with_a_permutation():
    draw = torch.Generator().manual_seed(3)
    x, t = torch.randn(6, 3, 4, 4, generator=draw), torch.rand(6, 5, generator=draw)
    got_x, got_t = mixed(x, t, 0.4, np.random.default_rng(7))
    again = np.random.default_rng(7)
    weight, other = again.beta(0.4, 0.4), again.permutation(6)
    assert 0.001 < weight < 0.999 and (other != np.arange(6)).any()
    torch.testing.assert_close(got_x, weight * x + (1 - weight) * x[other])
    torch.testing.assert_close(got_t, weight * t + (1 - weight) * t[other])
    same_x, same_t = mixed(x, t, 0.0, np.random.default_rng(7))
    assert same_x is x and same_t is t


def test_loss_of_two_heads_is_the_mean_of_both():
    draw = torch.Generator().manual_seed(5)
    a, b = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw)
    t = torch.rand(4, 3, generator=draw).softmax(1)
    by_hand = [-(t * F.log_softmax(h, 1)).sum(1).mean() for h in (a, b)]
    torch.testing.assert_close(soft_loss((a, b), t), (by_hand[0] + by_hand[1]) / 2)
    torch.testing.assert_close(soft_loss(b, t), by_hand[1])
    with pytest.raises(TrainingError, match=r"shape \(4, 3\) from the model, got \(4, 2\)"):
        soft_loss(a[:, :2], t)


def test_moving_average_against_a_loop():
    module = net()
    ema = Ema(module, steps=5)
    names = [n for n, v in module.state_dict().items() if v.is_floating_point()]
    want = {n: module.state_dict()[n].double() for n in names}
    assert {"norm.running_mean", "norm.running_var"} < set(names)
    for step in range(12):
        randomise(module, step)
        module.norm.num_batches_tracked += 1
        ema.update(module, step)
        keep = min(1 - 1 / 5, (1 + step) / (10 + step))
        for name in names:
            want[name] = keep * want[name] + (1 - keep) * module.state_dict()[name].double()
    for name in names:
        torch.testing.assert_close(
            ema.module.state_dict()[name].double(), want[name], atol=1e-6, rtol=1e-5
        )
    assert int(ema.module.norm.num_batches_tracked) == 12
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_moved_pictures_continue_their_edge():
    view = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    got = moved(view, 1, -2)
    np.testing.assert_array_equal(got[1:, :3], view[:3, 2:])
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[:, 4], got[:, 3])


@pytest.mark.parametrize(
    ("height", "width", "aspect"), [(40, 40, 1.0), (30, 90, 1.0), (50, 40, 2.0)]
)
def test_random_boxes_lie_inside_and_keep_their_share(height, width, aspect):
    told = TrainOptions(crop_area=0.5, crop_stretch=1.3)
    largest = min(width, height * aspect) ** 2 / aspect
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        left, top, right, bottom = random_box(height, width, aspect, told, rng)
        assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
        shares.append((right - left) * (bottom - top) / largest)
        assert 1 / 1.3 - 1e-9 <= (right - left) / (bottom - top) / aspect <= 1.3 + 1e-9
    assert 0.5 / 1.3 < min(shares) < 0.6 and 0.9 < max(shares) <= 1 + 1e-9


def test_augmentation_off_is_the_picture_and_on_depends_on_the_seed_alone():
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    off = options(crop_area=1.0, crop_stretch=1.0, shift=0.0)
    got = augmented(picture, PRE, off, np.random.default_rng(0))
    np.testing.assert_allclose(got, picture / 255, atol=1e-6)
    views = [augmented(picture, PRE, options(), np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(views[0], views[1])
    assert np.abs(views[0] - views[2]).max() > 0.1
    flips = [
        augmented(
            picture,
            PRE,
            options(crop_area=1.0, crop_stretch=1.0, shift=0.0, flip=True),
            np.random.default_rng(s),
        )
        for s in range(20)
    ]
    mirrored = [np.allclose(f, picture[:, ::-1] / 255, atol=1e-6) for f in flips]
    assert 2 < sum(mirrored) < 18


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"label_smoothing": 1.5}, "label_smoothing must be 0 to 1, got 1.5"),
        ({"seed": -1}, "seed must be 0 to 4.29497e\\+09, got -1"),
    ],
)
def test_options_that_make_no_sense(changed, said):
    with pytest.raises(TrainingError, match=said) as caught:
        TrainOptions(**changed).check()
    assert caught.value.exit_code == 2

"""Taylor scores against what really happens when channels and blocks are set to zero."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import pictures, randomise, settle_batch_norm
from torch import Tensor, nn

from converters.slim.errors import SlimError
from converters.slim.importance import changes, of_block, of_space, scores

WIDTH, HIDDEN, CLASSES = 16, 32, 4
GROUPS = 4

SPACES = {
    "stem.0.weight": ("width", None, None, None),
    "block.0.weight": ("hidden", "width", None, None),
    "block.3.weight": ("width", "hidden", None, None),
    "side.weight": ("width", None, None, None),
    "grouped.weight": ("out", "width", None, None),
    "head.weight": (None, "out"),
}


class Tiny(nn.Module):
    """A stem, a residual block, a depthwise branch, a grouped convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.block = nn.Sequential(
            nn.Conv2d(WIDTH, HIDDEN, 1), nn.BatchNorm2d(HIDDEN), nn.ReLU(),
            nn.Conv2d(HIDDEN, WIDTH, 1), nn.BatchNorm2d(WIDTH),
        )  # fmt: skip
        self.side = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 1, groups=GROUPS)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        x = x + self.side(x)
        return self.head(self.grouped(x).relu().mean((2, 3)))


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures whose class is the sign pattern of two of their colour means."""
    images = pictures(count, 16, seed)
    means = images.mean((2, 3))
    return images, (means[:, 0] > 0).long() * 2 + (means[:, 1] > 0).long()


def net(seed: int = 0) -> Tiny:
    return settle_batch_norm(randomise(Tiny(), seed), pictures(8, 16, seed + 1))


@pytest.fixture(scope="module")
def trained() -> Tiny:
    module = net(1).train()
    images, labels = data(160, 3)
    optimizer = torch.optim.AdamW(module.parameters(), 5e-3, weight_decay=0.05)
    for step in range(60):
        chosen = torch.arange(32) + 32 * (step % 5)
        loss = F.cross_entropy(module(images[chosen]), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        assert (module(images).argmax(1) == labels).float().mean() > 0.8
    return module


def loss_of(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(module(images), labels))


@torch.no_grad()
def scaled(module: Tiny, space: str, channel: int, factor: float) -> Tiny:
    """What reads the channel times `factor`; written out by hand for this network."""
    module = copy.deepcopy(module)
    match space:
        case "hidden":
            module.block[3].weight[:, channel] *= factor
        case "out":
            module.head.weight[:, channel] *= factor
        case "width":
            module.block[0].weight[:, channel] *= factor
            each = WIDTH // GROUPS  # the rows of other groups do not read this channel
            rows = slice(channel // each * each, channel // each * each + each)
            module.grouped.weight[rows, channel % each] *= factor
    return module


@pytest.mark.parametrize(
    ("space", "channels"), [("hidden", HIDDEN), ("width", WIDTH), ("out", WIDTH)]
)
def test_changes_equal_finite_differences(space: str, channels: int) -> None:
    """Central differences in float64, for every channel and group of pictures."""
    module = net().double()
    images, labels = data(10, 2)
    images = images.double()
    got = changes(scores(module, [(images, labels)], group=5), SPACES, space)
    assert got.shape == (2, channels)
    step = 1e-6  # no ReLU changes its mind on the way
    for group, (x, y) in enumerate(zip(images.split(5), labels.split(5), strict=True)):
        want = [
            (loss_of(scaled(module, space, c, 1 - step), x, y)
             - loss_of(scaled(module, space, c, 1 + step), x, y)) / (2 * step)
            for c in range(channels)
        ]  # fmt: skip
        assert torch.allclose(got[group], torch.tensor(want).double(), rtol=1e-5, atol=1e-8)


def test_scores_are_the_mean_square_over_groups() -> None:
    images, labels = data(12, 2)
    found = scores(net(), [(images[:8], labels[:8]), (images[8:], labels[8:])], group=4)
    each = changes(found, SPACES, "hidden")
    assert len(each) == 3
    assert torch.allclose(of_space(found, SPACES, "hidden"), (each**2).sum(0) / 3)


def test_a_small_cut_costs_what_the_score_says() -> None:
    """A channel that hardly matters is really set to zero: the loss moves by about the change."""
    module, (images, labels) = net().double(), data(8, 2)
    images = images.double()
    with torch.no_grad():
        module.block[3].weight *= 0.02
    got = changes(scores(module, [(images, labels)]), SPACES, "hidden")[0]
    before = loss_of(module, images, labels)
    want = torch.tensor(
        [loss_of(scaled(module, "hidden", c, 0), images, labels) - before for c in range(HIDDEN)]
    )
    assert want.abs().max() > 1e-4
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize(("space", "channels"), [("hidden", HIDDEN), ("out", WIDTH)])
def test_ranking_is_that_of_leaving_out_in_a_trained_network(
    trained: Tiny, space: str, channels: int
) -> None:
    """The literal change of the loss, squared and averaged over the same groups of pictures.

    Six such networks gave rank correlations of 0.87 to 0.99.
    """
    images, labels = data(64, 41)
    got = of_space(scores(trained, [(images, labels)]), SPACES, space)
    want = torch.zeros(channels)
    for x, y in zip(images.split(8), labels.split(8), strict=True):
        whole = loss_of(trained, x, y)
        cuts = [loss_of(scaled(trained, space, c, 0), x, y) - whole for c in range(channels)]
        want += torch.tensor(cuts) ** 2
    assert spearman(got, want) > 0.75


def test_a_block_is_scored_by_what_silences_it() -> None:
    module = net().double()
    images, labels = data(6, 2)
    images = images.double()
    names = ["block.4.weight", "block.4.bias"]
    got = of_block(scores(module, [(images, labels)]), names)

    def faded(factor: float) -> float:
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.block[4].weight *= factor
            other.block[4].bias *= factor
        return loss_of(other, images, labels)

    assert got == pytest.approx(((faded(1 - 1e-6) - faded(1 + 1e-6)) / 2e-6) ** 2, rel=1e-4)
    with torch.no_grad():
        module.block[4].weight.zero_()
        module.block[4].bias.zero_()
    assert of_block(scores(module, [(images, labels)]), names) == 0


def test_the_module_stays_as_it_is_and_soft_labels_count_as_labels() -> None:
    module = net().train()
    module.head.requires_grad_(False)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    images, labels = data(6, 2)
    hard = scores(module, [(images, labels)])
    soft = scores(module, [(images, F.one_hot(labels, CLASSES).float())])
    for name, product in hard.items():
        assert torch.allclose(product.rows, soft[name].rows, atol=1e-6)
    assert module.training and not module.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_errors_say_what_is_missing() -> None:
    images, labels = data(4, 2)
    with pytest.raises(SlimError, match="there are none: give more data"):
        scores(net(), [])
    broken = net()
    with torch.no_grad():
        broken.head.bias[0] = torch.nan
    with pytest.raises(SlimError, match="is no number on these pictures"):
        scores(broken, [(images, labels)])
    found = scores(net(), [(images, labels)])
    with pytest.raises(SlimError, match="reads the space depth"):
        of_space(found, SPACES, "depth")
    with pytest.raises(SlimError, match=r"has no parameter block\.9\.weight"):
        of_block(found, ["block.9.weight"])

"""Cutting channels out of a network's tensors: against hand-made sums, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converters.slim.errors import SlimError
from converters.slim.slicing import settle_statistics, strongest, take


class Pair(nn.Module):
    """Two linear maps with a hidden layer between, and buffers that are no weights."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


SPACES = {
    "first.weight": ("hidden", None),
    "first.bias": ("hidden",),
    "norm.weight": ("hidden",),
    "norm.bias": ("hidden",),
    "norm.running_mean": ("hidden",),
    "norm.running_var": ("hidden",),
    "second.weight": (None, "hidden"),
}


@pytest.fixture
def source():
    torch.manual_seed(0)
    made = Pair(6).eval()
    with torch.no_grad():
        made.norm.running_mean.normal_()
        made.norm.running_var.uniform_(0.5, 2)
        made.norm.weight.normal_()
        made.norm.bias.normal_()
        made.norm.num_batches_tracked.fill_(7)
    return made


def names(module):
    return {name: name for name, value in module.state_dict().items() if value.is_floating_point()}


def test_the_kept_channels_alone_compute_the_sum(source):
    """By hand: the whole network's hidden layer, without the channels that are gone."""
    kept = torch.tensor([1, 2, 5])
    target = Pair(3).eval()
    take(source.state_dict(), target, names(target), SPACES, {"hidden": kept})
    x = torch.randn(4, 3)
    hidden = source.norm(source.first(x)).relu()
    wanted = source.second.bias + sum(
        hidden[:, [channel]] * source.second.weight[:, channel] for channel in (1, 2, 5)
    )
    assert torch.allclose(target(x), wanted, atol=1e-6)
    assert int(target.norm.num_batches_tracked) == 0  # a counter, not a weight


def test_nothing_is_cut_without_a_choice_and_names_may_differ(source):
    target = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    place = {"0": "first", "1": "norm", "3": "second"}
    named = {name: f"{place[name[0]]}.{name[2:]}" for name in names(target)}
    take(source.state_dict(), target, named, SPACES, {})
    x = torch.randn(4, 3)
    assert torch.equal(target(x), source(x))


def test_one_space_in_two_dims(source):
    table = nn.ParameterDict({"table": torch.zeros(2, 2)})
    state = {"table": torch.arange(9.0).reshape(3, 3)}
    take(state, table, {"table": "table"}, {"table": ("a", "a")}, {"a": torch.tensor([0, 2])})
    assert table["table"].tolist() == [[0, 2], [6, 8]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a["names"].pop("norm.bias"), "norm.bias is given no weights"),
        (lambda a: a["names"].pop("norm.running_var"), "norm.running_var is given no weights"),
        (lambda a: a["names"].update({"third.bias": "first.bias"}), "third.bias is not in"),
        (lambda a: a["names"].update({"first.bias": "fist.bias"}), "has no fist.bias"),
        (lambda a: a["spaces"].pop("second.weight"), r"second.weight takes .* \(2, 3\), and"),
        (lambda a: a["spaces"].update({"first.bias": ("hidden", None)}), "first.bias has 1 dims"),
        (lambda a: a["kept"].update(hidden=torch.tensor([1, 2])), r"first.weight .* \(2, 3\)"),
        (lambda a: a["kept"].update(hidden=torch.tensor([1, 1, 2])), "must rise"),
        (lambda a: a["kept"].update(hidden=torch.tensor([2, 1, 0])), "must rise"),
        (lambda a: a["kept"].update(hidden=torch.tensor([1, 2, 6])), "less than 6"),
        (lambda a: a["kept"].update(hidden=torch.tensor([-1, 2, 3])), "must rise"),
        (lambda a: a["kept"].update(hidden=torch.tensor([1.0, 2, 3])), "no list of indices"),
    ],
)
def test_whatever_does_not_fit_is_refused(source, change, said):
    target = Pair(3)
    given = {"names": names(target), "spaces": dict(SPACES)}
    given["kept"] = {"hidden": torch.tensor([0, 2, 4])}
    change(given)
    with pytest.raises(SlimError, match=said):
        take(source.state_dict(), target, **given)


def test_the_strongest_and_of_equals_the_first():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert strongest(scores, 2).tolist() == [1, 3]
    assert strongest(scores, 4).tolist() == [1, 2, 3, 4]
    assert strongest(scores, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert strongest(scores, 1).dtype == torch.int64


@pytest.mark.parametrize("count", [0, 7])
def test_no_more_channels_than_there_are(count):
    with pytest.raises(SlimError, match=f"choose {count} channels"):
        strongest(torch.ones(6), count)


def test_scores_are_numbers():
    with pytest.raises(SlimError, match="cannot choose"):
        strongest(torch.tensor([1.0, float("nan")]), 1)


def test_statistics_are_the_average_of_the_batches():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5))
    norm = module[1]
    with torch.no_grad():
        norm.running_mean.fill_(50)
    batches = [torch.randn(5, 3, 4, 4) * 3 + 2 for _ in range(4)]
    settle_statistics(module, iter(batches))
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert torch.allclose(norm.running_var, variances, atol=1e-4)
    assert norm.momentum == 0.3
    assert not any(part.training for part in module.modules())


def test_a_norm_that_nothing_goes_through_keeps_its_statistics():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.used(x)

    module = Fork()
    with torch.no_grad():
        module.idle.running_mean.fill_(4)
        module.idle.running_var.fill_(9)
    settle_statistics(module, [torch.randn(3, 2, 2, 2)])
    assert module.idle.running_mean.tolist() == [4, 4]
    assert module.idle.running_var.tolist() == [9, 9]
    assert module.used.running_mean.abs().max() > 0


def test_no_pictures_no_statistics():
    module = nn.Sequential(nn.BatchNorm2d(2))
    with torch.no_grad():
        module[0].running_mean.fill_(4)
    with pytest.raises(SlimError, match="need pictures"):
        settle_statistics(module, [])
    assert module[0].running_mean.tolist() == [4, 4]
    settle_statistics(nn.Sequential(nn.Linear(2, 2)), [])  # nothing to settle

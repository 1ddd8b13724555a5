"""gamma and beta of LayerNorm and GroupNorm into the linear maps that read them."""

from __future__ import annotations

import pytest
import torch
from fold_check import EXACT, NORM_AFFINE, Lambda, fold
from torch import Tensor, nn


def concat(x: Tensor, *readers: nn.Module) -> Tensor:
    return torch.cat([reader(x) for reader in readers], -1)


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's LayerNorm over the channels of a feature map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


FORMS = {
    "LayerNorm, linear": (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)), (5, 6)),
    "LayerNorm, linear without bias": (
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4, bias=False)),
        (5, 6),
    ),
    "LayerNorm without beta": (
        nn.Sequential(nn.LayerNorm(6, bias=False), nn.Linear(6, 4)),
        (5, 6),
    ),
    "LayerNorm, q and k and v": (
        Lambda(
            lambda m, x: concat(m.norm(x), m.q, m.k, m.v),
            norm=nn.LayerNorm(6),
            q=nn.Linear(6, 2),
            k=nn.Linear(6, 3),
            v=nn.Linear(6, 4, bias=False),
        ),
        (5, 6),
    ),
    "LayerNorm, mean over tokens, two heads": (
        Lambda(
            lambda m, x: concat(m.norm(x).mean(1), m.one, m.two),
            norm=nn.LayerNorm(6),
            one=nn.Linear(6, 3),
            two=nn.Linear(6, 3),
        ),
        (5, 6),
    ),
    "LayerNorm, first token": (
        Lambda(lambda m, x: m.head(m.norm(x)[:, 0]), norm=nn.LayerNorm(6), head=nn.Linear(6, 3)),
        (5, 6),
    ),
    "LayerNorm over channels, 1x1 convolution": (
        nn.Sequential(ChannelsLastNorm(6), nn.Conv2d(6, 4, 1)),
        (6, 3, 5),
    ),
    "GroupNorm, 1x1 convolution": (
        nn.Sequential(nn.GroupNorm(1, 6), nn.Conv2d(6, 4, 1, bias=False)),
        (6, 5, 5),
    ),
    "GroupNorm of three groups, grouped convolution": (
        nn.Sequential(nn.GroupNorm(3, 6), nn.Conv2d(6, 4, 3, groups=2)),
        (6, 5, 5),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_affine_goes_and_the_norm_stays(form: str) -> None:
    model, shape = FORMS[form]
    folded = fold(model, shape)
    assert folded.fired[NORM_AFFINE] == 1
    assert folded.error <= EXACT
    (norm,) = [n for n in folded.module.graph.nodes if "_norm" in str(n.target)]
    assert not [source for source in norm.all_input_nodes if source.op == "get_attr"]


def test_without_beta_also_before_a_padded_convolution() -> None:
    model = nn.Sequential(ChannelsLastNorm(6), nn.Conv2d(6, 4, 3, padding=1))
    model[0].norm = nn.LayerNorm(6, bias=False)
    folded = fold(model, (6, 5, 5))
    assert folded.fired[NORM_AFFINE] == 1
    assert folded.error <= EXACT

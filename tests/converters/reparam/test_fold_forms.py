"""The training forms of the field: each block folds to what its paper deploys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from fold_check import EXACT, Lambda, fold
from torch import Tensor, nn

from edgevit.models.efficientformer import ConvMLP, LayerScale, Pooling
from edgevit.models.efficientformerv2 import Attention as AttentionV2
from edgevit.models.efficientformerv2 import LocalGlobalQuery
from edgevit.models.fmvit import CFB, FMB, HighFrequency, MultiGroupConv
from edgevit.models.shvit import SHSA, ConvBN, PatchMerging, Residual

C = 12


def conv_bn(dim: int, kernel: int, groups: int = 1, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(dim, dim, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(dim))


class MobileOne(nn.Module):
    """k branches of kxk, one of 1x1, the norm of the input where the shape stays; then ReLU."""

    def __init__(self, kernel: int, groups: int, stride: int, branches: int = 4) -> None:
        super().__init__()
        many = [conv_bn(C, kernel, groups, stride) for _ in range(branches)]
        small = [conv_bn(C, 1, groups, stride)] if kernel > 1 else []
        skip = [nn.BatchNorm2d(C)] if stride == 1 else []
        self.branches = nn.ModuleList(many + small + skip)

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        for branch in self.branches:
            out += branch(x)
        return out.relu_()


def repmixer() -> nn.Module:
    """FastViT's token mixer: x + g (mixer(x) - norm(x)), both of MobileOne's parts."""
    return Lambda(
        lambda m, x: x + m.gamma * (m.one(x) + m.small(x) + m.skip(x) - m.norm(x)),
        one=conv_bn(C, 3, C),
        small=conv_bn(C, 1, C),
        skip=nn.BatchNorm2d(C),
        norm=nn.BatchNorm2d(C),
        gamma=nn.Parameter(torch.empty(C, 1, 1)),
    )


def repvgg_dw() -> nn.Module:
    """RepViT's: BN(dw3x3BN(x) + dw1x1(x) + x)."""
    return Lambda(
        lambda m, x: m.norm(m.conv(x) + m.small(x) + x),
        conv=conv_bn(C, 3, C),
        small=nn.Conv2d(C, C, 1, groups=C),
        norm=nn.BatchNorm2d(C),
    )


def pool_mixer() -> nn.Module:
    """EfficientFormer V1: x + g1 (pool(x) - x), x + g2 MLP(x)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x + m.ls1(m.pool(x))
        return x + m.ls2(m.mlp(x))

    scales = {name: LayerScale(C, (1, C, 1, 1)) for name in ("ls1", "ls2")}
    return Lambda(forward, pool=Pooling(), mlp=ConvMLP(C), **scales)


@dataclass(frozen=True)
class Form:
    """A training form and all ops of its folded form, spelled `op` or `op*count`."""

    make: Callable[[], nn.Module]
    ops: str
    dim: int = C
    side: int = 8


FORMS = {
    "MobileOne, depthwise": Form(lambda: MobileOne(3, C, 1), "conv2d relu"),
    "MobileOne, depthwise, stride 2": Form(lambda: MobileOne(3, C, 2), "conv2d relu"),
    "MobileOne, pointwise": Form(lambda: MobileOne(1, 1, 1), "conv2d relu"),
    "RepVGG": Form(lambda: MobileOne(3, 1, 1, branches=1), "conv2d relu"),
    "RepVGG, stride 2": Form(lambda: MobileOne(3, 1, 2, branches=1), "conv2d relu"),
    "RepVGG, groups": Form(lambda: MobileOne(3, 4, 1, branches=1), "conv2d relu"),
    "RepViT, RepVGGDW": Form(repvgg_dw, "conv2d"),
    "FastViT, RepMixer": Form(repmixer, "conv2d"),
    "FastViT, position encoding": Form(
        lambda: Residual(nn.Conv2d(C, C, 7, 1, 3, groups=C)), "conv2d"
    ),
    "FastViT, large kernel": Form(
        lambda: Lambda(
            lambda m, x: m.large(x) + m.small(x),
            large=conv_bn(C, 7, C, 2),
            small=conv_bn(C, 3, C, 2),
        ),
        "conv2d",
    ),
    "SHViT, depthwise residual": Form(lambda: Residual(ConvBN(C, C, 3, groups=C)), "conv2d"),
    "SHViT, merging": Form(lambda: PatchMerging(C, 8), "conv2d*5 relu*3 mean sigmoid mul"),
    "SHViT, attention": Form(
        lambda: SHSA(32, 16),
        "split_with_sizes*2 group_norm conv2d*2 flatten transpose*2 bmm*2 softmax reshape cat relu",
        dim=32,
    ),
    "EfficientFormer V1, pool mixer": Form(pool_mixer, "avg_pool2d sub conv2d*3 add*2 gelu"),
    "EfficientFormer V2, local-global query": Form(lambda: LocalGlobalQuery(C, 8), "conv2d*2"),
    "EfficientFormer V2, the same on odd sides": Form(
        lambda: LocalGlobalQuery(C, 8), "conv2d*2", side=7
    ),
    "EfficientFormer V2, attention": Form(
        lambda: AttentionV2(C, 4, halved=False),
        "conv2d*7 reshape*5 transpose*2 bmm*2 add*2 softmax flatten gelu",
        side=4,
    ),
    "FMViT, multi-group": Form(lambda: MultiGroupConv(C, C), "conv2d"),
    "FMViT, multi-group to another width": Form(lambda: MultiGroupConv(C, 8), "conv2d"),
    "FMViT, multi-group depthwise": Form(lambda: MultiGroupConv(C, C, 5, depthwise=True), "conv2d"),
    "FMViT, high frequency": Form(lambda: HighFrequency(C, 8, 7), "conv2d*2 relu*2"),
    "FMViT, fusion block": Form(lambda: CFB(C), "conv2d*4 relu*2 add*2"),
    "FMViT, mixing block": Form(
        lambda: FMB(64, 2),
        "conv2d*15 relu*7 reshape*4 transpose*2 bmm*2 softmax cat add*3",
        dim=64,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_training_form(name: str) -> None:
    form = FORMS[name]
    folded = fold(form.make(), (form.dim, form.side, form.side))
    counts = (word.split("*") for word in form.ops.split())
    assert folded.ops == {op: int(count[0]) if count else 1 for op, *count in counts}
    assert folded.error <= EXACT

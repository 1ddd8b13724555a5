"""SHViT: single-head vision transformers (Yun and Ro, CVPR 2024, arXiv 2401.16456).

Three stages at strides 16, 32 and 64. Depthwise convolutions mix neighbours everywhere; in stages
2 and 3 a single attention head mixes all positions, over a part of the channels only. There is no
position bias, so any static input size works. Parameter names are those of timm's `shvit_*`.
"""

# Shapes: B batch, C channels, H height, W width, N positions (H*W),
#         P channels that attend, K query and key width.

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.models.registry import Latency, ModelConfig, register_model
from edgevit.models.shapes import register_shape

STAGES = 3
QK_DIM = 16
FFN_RATIO = 2
MERGE_RATIO = 4


class ConvBN(nn.Sequential):
    """Convolution without bias, padded to keep its stride's size, then BatchNorm."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        gamma_init: float = 1.0,
    ) -> None:
        conv = nn.Conv2d(
            dim_in, dim_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        norm = nn.BatchNorm2d(dim_out)
        nn.init.constant_(norm.weight, gamma_init)
        super().__init__(OrderedDict(c=conv, bn=norm))


class BNLinear(nn.Sequential):
    """The classifier: BatchNorm, then a linear map; (B, C) to (B, classes)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        linear = nn.Linear(dim_in, dim_out)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        super().__init__(OrderedDict(bn=nn.BatchNorm1d(dim_in), l=linear))


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.m(x_BCHW)
        return x_BCHW + y_BCHW


class FFN(nn.Module):
    """Two 1x1 ConvBN with a ReLU between; twice as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(dim, FFN_RATIO * dim)
        self.act = nn.ReLU()
        self.pw2 = ConvBN(FFN_RATIO * dim, dim, gamma_init=0.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.pw2(self.act(self.pw1(x_BCHW)))
        return y_BCHW


class SHSA(nn.Module):
    """Single-head self-attention over the first `attention_dim` channels; the rest pass by it."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.split_x = [attention_dim, dim - attention_dim]
        self.split_qkv = [QK_DIM, QK_DIM, attention_dim]
        self.scale = QK_DIM**-0.5
        self.pre_norm = nn.GroupNorm(1, attention_dim)
        self.qkv = ConvBN(attention_dim, sum(self.split_qkv))
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(dim, dim, gamma_init=0.0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BPHW, rest_BCHW = torch.split(x_BCHW, self.split_x, dim=1)
        qkv_BCN = self.qkv(self.pre_norm(x_BPHW)).flatten(2)
        q_BKN, k_BKN, v_BPN = torch.split(qkv_BCN, self.split_qkv, dim=1)
        # bmm and not matmul: matmul exports an expand per operand, which XNNPACK does not take.
        attn_BNN = (torch.bmm(q_BKN.transpose(1, 2), k_BKN) * self.scale).softmax(dim=-1)
        out_BPN = torch.bmm(v_BPN, attn_BNN.transpose(1, 2))
        y_BCHW: Tensor = self.proj(torch.cat([out_BPN.reshape(x_BPHW.shape), rest_BCHW], dim=1))
        return y_BCHW


class Block(nn.Module):
    """Depthwise 3x3, attention where `attention_dim` is given, FFN; a residual around each."""

    def __init__(self, dim: int, attention_dim: int | None) -> None:
        super().__init__()
        self.conv = Residual(ConvBN(dim, dim, 3, groups=dim, gamma_init=0.0))
        self.mixer = Residual(SHSA(dim, attention_dim)) if attention_dim else nn.Identity()
        self.ffn = Residual(FFN(dim))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.ffn(self.mixer(self.conv(x_BCHW)))
        return y_BCHW


def gate_width(dim: int) -> int:
    """Hidden width of the squeeze-excite of `dim` channels: a quarter, to a multiple of 8."""
    return (dim // 4 + 4) // 8 * 8


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channel means."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = gate_width(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        gate_BC11: Tensor = self.fc2(self.act(self.fc1(mean_BC11)))
        return x_BCHW * gate_BC11.sigmoid()


class PatchMerging(nn.Module):
    """Halves height and width (rounding up) by an inverted bottleneck with squeeze-excite."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        hidden = MERGE_RATIO * dim_in
        self.conv1 = ConvBN(dim_in, hidden)
        self.act1 = nn.ReLU()
        self.conv2 = ConvBN(hidden, hidden, 3, stride=2, groups=hidden)
        self.act2 = nn.ReLU()
        self.se = SqueezeExcite(hidden)
        self.conv3 = ConvBN(hidden, dim_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act2(self.conv2(self.act1(self.conv1(x_BCHW))))
        y_BCHW: Tensor = self.conv3(self.se(x_BCHW))
        return y_BCHW


class Stem(nn.Sequential):
    """Four halvings of the picture, (B, 3, H, W) to (B, dim, H / 16, W / 16), rounded up."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            ConvBN(3, dim // 8, 3, stride=2),
            nn.ReLU(),
            ConvBN(dim // 8, dim // 4, 3, stride=2),
            nn.ReLU(),
            ConvBN(dim // 4, dim // 2, 3, stride=2),
            nn.ReLU(),
            ConvBN(dim // 2, dim, 3, stride=2),
        )


class Stage(nn.Module):
    """A halving of the resolution unless `dim_in` is None, then `depth` blocks of one width."""

    def __init__(self, dim_in: int | None, dim: int, depth: int, attention_dim: int | None) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if dim_in is not None:
            self.downsample = nn.Sequential(
                Residual(ConvBN(dim_in, dim_in, 3, groups=dim_in)),
                Residual(FFN(dim_in)),
                PatchMerging(dim_in, dim),
                Residual(ConvBN(dim, dim, 3, groups=dim)),
                Residual(FFN(dim)),
            )
        self.blocks = nn.Sequential(*(Block(dim, attention_dim) for _ in range(depth)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.blocks(self.downsample(x_BCHW))
        return y_BCHW


@register_shape("shvit")
@dataclass(frozen=True)
class SHViTShape:
    """Three stages: widths in channels, depths in blocks, how many channels attend (0 for none).

    heads is 2 with a distillation head. Raises ValueError where there is no such network.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    attention_dims: tuple[int, ...]
    heads: int = 1

    def __post_init__(self) -> None:
        for name, values in (
            ("widths", self.widths), ("depths", self.depths),
            ("attention_dims", self.attention_dims),
        ):  # fmt: skip
            if len(values) != STAGES:
                raise ValueError(f"expected {STAGES} {name}, got {len(values)}")
        if min(self.widths) < 8 or min(self.depths) < 1:
            raise ValueError("a stage has at least 8 channels and 1 block")
        if any(not 0 <= a < w for a, w in zip(self.attention_dims, self.widths, strict=True)):
            raise ValueError("what attends is a part of a stage's channels, 0 for none")
        if self.heads not in (1, 2):
            raise ValueError(f"a network has 1 or 2 heads, got {self.heads}")

    def build(self, num_classes: int, input_size: int) -> SHViT:
        """The network in eval mode, random weights."""
        return SHViT(
            self.widths, self.depths, self.attention_dims, num_classes, self.heads == 2
        ).eval()


class SHViT(nn.Module):
    """SHViT classifier, training form (every BatchNorm apart).

    Images (B, 3, H, W) of any size, to logits (B, num_classes). With `distillation` there is a
    second head: training gives both heads' logits as a tuple, eval their mean.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        attention_dims: tuple[int | None, ...],
        num_classes: int = 1000,
        distillation: bool = False,
    ) -> None:
        super().__init__()
        self.shape = SHViTShape(
            widths, depths, tuple(dim or 0 for dim in attention_dims), 1 + distillation
        )
        self.patch_embed = Stem(widths[0])
        dims_in = (None, *widths[:-1])
        self.stages = nn.Sequential(*map(Stage, dims_in, widths, depths, attention_dims))
        self.head = BNLinear(widths[-1], num_classes)
        self.head_dist = BNLinear(widths[-1], num_classes) if distillation else None

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x_BCHW = self.stages(self.patch_embed(x_BCHW))
        # keepdim: XNNPACK takes a mean over height and width in this form only.
        x_BC = x_BCHW.mean((2, 3), keepdim=True).flatten(1)
        logits: Tensor = self.head(x_BC)
        if self.head_dist is None:
            return logits
        logits_dist: Tensor = self.head_dist(x_BC)
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2


def _config(
    name: str,
    *,
    params_m: float,
    macs_g: float,
    top1: float,
    input_size: int = 224,
    latencies: tuple[Latency, ...] = (),
) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="shvit",
        input_size=input_size,
        crop_pct=0.875,
        params_m=params_m,
        macs_g=macs_g,
        top1=top1,
        top1_source="SHViT paper, 300 epochs, no distillation",
        latencies=latencies,
    )


@register_model(_config("shvit_s1", params_m=6.331, macs_g=0.2413, top1=72.8))
def shvit_s1(num_classes: int = 1000, **kwargs: Any) -> SHViT:
    return SHViT((128, 224, 320), (2, 4, 5), (None, 48, 68), num_classes, **kwargs)


@register_model(_config("shvit_s2", params_m=11.483, macs_g=0.3654, top1=75.2))
def shvit_s2(num_classes: int = 1000, **kwargs: Any) -> SHViT:
    return SHViT((128, 308, 448), (2, 4, 5), (None, 66, 96), num_classes, **kwargs)


@register_model(_config("shvit_s3", params_m=14.245, macs_g=0.6006, top1=77.4))
def shvit_s3(num_classes: int = 1000, **kwargs: Any) -> SHViT:
    return SHViT((192, 352, 448), (3, 5, 5), (None, 75, 96), num_classes, **kwargs)


@register_model(
    _config(
        "shvit_s4",
        params_m=16.588,
        macs_g=0.9862,
        top1=79.4,
        input_size=256,
        latencies=(
            Latency("iPhone 12, Core ML, 256x256", 1.6, "SHViT paper"),
            Latency("iPhone 12, Core ML, 512x512", 3.3, "SHViT paper"),
        ),
    )
)
def shvit_s4(num_classes: int = 1000, **kwargs: Any) -> SHViT:
    return SHViT((224, 336, 448), (4, 7, 6), (None, 72, 96), num_classes, **kwargs)

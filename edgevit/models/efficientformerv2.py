"""EfficientFormerV2 (Li et al., ICCV 2023, arXiv 2212.08059).

Four stages at strides 4, 8, 16 and 32, all on feature maps. Every block ends in an inverted
bottleneck whose 3x3 depthwise convolution mixes neighbours; the last blocks of stages 3 and 4 begin
with attention over all positions, whose heads talk to each other. In stage 3 it runs at half the
resolution, and the step into stage 4 is an attention too. Learned biases per head and offset fix
the input's size when the model is made. Parameter names are those of timm's `efficientformerv2_*`.
"""

# Shapes: B batch, C channels, H height, W width, M heads, G batch times heads,
#         N positions (of the keys), Q positions of the queries,
#         K query and key width, V value width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.models.registry import Latency, ModelConfig, ModelError, check_side, register_model
from edgevit.models.shapes import register_shape

STRIDE = 32
INPUT_SIZE = 224
HEADS, KEY_DIM, VALUE_DIM = 8, 32, 128
DOWN_KEY_DIM, DOWN_VALUE_DIM = 16, 64
LAYER_SCALE_INIT = 1e-5

Ratios = tuple[int, ...]


@register_shape("efficientformerv2")
@dataclass(frozen=True)
class EfficientFormerV2Shape:
    """The widths of the four stages, in each stage an FFN ratio a block, and who attends.

    The last attention_depths[0] blocks of stage 3 and attention_depths[1] of stage 4 do. Raises
    ValueError for what no network has.
    """

    widths: tuple[int, ...]
    mlp_ratios: tuple[Ratios, ...]
    attention_depths: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = (*self.widths, *self.attention_depths, *(r for row in self.mlp_ratios for r in row))
        if any(type(value) is not int for value in whole):
            raise ValueError("widths, mlp_ratios and attention_depths must be whole numbers")
        if len(self.widths) != 4 or min(self.widths) < 1 or self.widths[0] % 2:
            raise ValueError(f"expected four widths above 0, the first even, got {self.widths}")
        if len(self.mlp_ratios) != 4 or any(not row or min(row) < 1 for row in self.mlp_ratios):
            raise ValueError(
                "expected mlp_ratios of four stages, in each one of at least 1 for every block, "
                f"got {self.mlp_ratios}"
            )
        depths = tuple(len(row) for row in self.mlp_ratios[2:])
        if len(self.attention_depths) != 2 or any(
            not 0 <= attending <= depth
            for attending, depth in zip(self.attention_depths, depths, strict=False)
        ):
            raise ValueError(
                f"expected attention_depths of stages 3 and 4, at most their depths {depths}, "
                f"got {self.attention_depths}"
            )

    def build(self, num_classes: int, input_size: int) -> EfficientFormerV2:
        """The network in eval mode, random weights, without drop path."""
        return EfficientFormerV2(
            self.widths, self.mlp_ratios, self.attention_depths, num_classes, input_size
        ).eval()


class ConvBN(nn.Sequential):
    """Convolution padded to keep its stride's size, BatchNorm, and a GELU where asked for."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride, padding=kernel // 2, groups=groups)
        self.bn = nn.BatchNorm2d(dim_out)
        if act:
            self.act = nn.GELU()


class Stem(nn.Sequential):
    """Two 3x3 ConvBN of stride 2 with a GELU: (B, 3, H, W) to (B, dim, H/4, W/4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, dim // 2, 3, stride=2, act=True)
        self.conv2 = ConvBN(dim // 2, dim, 3, stride=2, act=True)


class LayerScale(nn.Module):
    """One learned factor per channel of a feature map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.gamma.view(1, -1, 1, 1)


class DropPath(nn.Module):
    """In training, drops a branch for a share `rate` of the samples and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BCHW
        kept_B111 = x_BCHW.new_empty(x_BCHW.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x_BCHW * kept_B111 / (1 - self.rate)


class FFN(nn.Sequential):
    """1x1, depthwise 3x3 and 1x1 ConvBN, the first two with a GELU; `ratio` times wider inside."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        hidden = ratio * dim
        self.fc1 = ConvBN(dim, hidden, act=True)
        self.mid = ConvBN(hidden, hidden, 3, groups=hidden, act=True)
        self.fc2 = ConvBN(hidden, dim)


def bias_indices(side: int, step: int = 1) -> Tensor:
    """Where the bias between two positions lies in a head's table: (Q, N) of |dy| * side + |dx|.

    Keys lie on a side x side map, queries on every `step`-th of its rows and columns.
    """
    position = torch.arange(side)
    offset = (position[::step, None] - position[None, :]).abs()
    return (offset[:, None, :, None] * side + offset[None, :, None, :]).reshape(-1, side * side)


class Attention(nn.Module):
    """Attention over a side x side map, heads mixed before and after softmax; keeps the shape.

    With `halved`, all of it runs on a map of half the side, and the values are scaled up again.
    """

    attention_bias_idxs: Tensor

    def __init__(self, dim: int, side: int, *, halved: bool) -> None:
        super().__init__()
        self.side = side // 2 if halved else side
        self.scale = KEY_DIM**-0.5
        self.stride_conv = ConvBN(dim, dim, 3, stride=2, groups=dim) if halved else None
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear") if halved else None
        inner = HEADS * VALUE_DIM
        self.q = ConvBN(dim, HEADS * KEY_DIM)
        self.k = ConvBN(dim, HEADS * KEY_DIM)
        self.v = ConvBN(dim, inner)
        self.v_local = ConvBN(inner, inner, 3, groups=inner)
        self.talking_head1 = nn.Conv2d(HEADS, HEADS, 1)
        self.talking_head2 = nn.Conv2d(HEADS, HEADS, 1)
        self.act = nn.GELU()
        self.proj = ConvBN(inner, dim)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, self.side**2))
        self.register_buffer("attention_bias_idxs", bias_indices(self.side), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.stride_conv is not None:
            x_BCHW = self.stride_conv(x_BCHW)
        B, N = x_BCHW.shape[0], self.side**2
        q_GKN = self.q(x_BCHW).reshape(B * HEADS, KEY_DIM, N)
        k_GKN = self.k(x_BCHW).reshape(B * HEADS, KEY_DIM, N)
        v_BCHW = self.v(x_BCHW)
        # bmm and not matmul: matmul exports an expand per operand, which XNNPACK does not take.
        attn_GNN = torch.bmm(q_GKN.transpose(1, 2), k_GKN) * self.scale
        # Gathered at every call: a stored copy goes stale when weights load after eval().
        bias_MNN = self.attention_biases[:, self.attention_bias_idxs]
        attn_BMNN = self.talking_head1(attn_GNN.reshape(B, HEADS, N, N) + bias_MNN)
        attn_BMNN = self.talking_head2(attn_BMNN.softmax(dim=-1))
        v_GVN = v_BCHW.reshape(B * HEADS, VALUE_DIM, N)
        out_GVN = torch.bmm(v_GVN, attn_BMNN.flatten(0, 1).transpose(1, 2))
        out_BCHW = out_GVN.reshape(v_BCHW.shape) + self.v_local(v_BCHW)
        if self.upsample is not None:
            out_BCHW = self.upsample(out_BCHW)
        y_BCHW: Tensor = self.proj(self.act(out_BCHW))
        return y_BCHW


class LocalGlobalQuery(nn.Module):
    """Queries on half the side: a depthwise 3x3 plus every second position, then a 1x1 ConvBN."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(1, stride=2)
        self.local = nn.Conv2d(dim_in, dim_in, 3, stride=2, padding=1, groups=dim_in)
        self.proj = ConvBN(dim_in, dim_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        q_BCHW: Tensor = self.proj(self.local(x_BCHW) + self.pool(x_BCHW))
        return q_BCHW


class AttentionDownsample(nn.Module):
    """Attention from half the positions to all of a side x side map: halves height and width."""

    attention_bias_idxs: Tensor

    def __init__(self, dim_in: int, dim_out: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.scale = DOWN_KEY_DIM**-0.5
        inner = HEADS * DOWN_VALUE_DIM
        self.q = LocalGlobalQuery(dim_in, HEADS * DOWN_KEY_DIM)
        self.k = ConvBN(dim_in, HEADS * DOWN_KEY_DIM)
        self.v = ConvBN(dim_in, inner)
        self.v_local = ConvBN(inner, inner, 3, stride=2, groups=inner)
        self.act = nn.GELU()
        self.proj = ConvBN(inner, dim_out)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, side**2))
        self.register_buffer("attention_bias_idxs", bias_indices(side, step=2), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, N, Q = x_BCHW.shape[0], self.side**2, (self.side // 2) ** 2
        q_GKQ = self.q(x_BCHW).reshape(B * HEADS, DOWN_KEY_DIM, Q)
        k_GKN = self.k(x_BCHW).reshape(B * HEADS, DOWN_KEY_DIM, N)
        v_BCHW = self.v(x_BCHW)
        local_BCHW = self.v_local(v_BCHW)
        attn_GQN = torch.bmm(q_GKQ.transpose(1, 2), k_GKN) * self.scale
        bias_MQN = self.attention_biases[:, self.attention_bias_idxs]
        attn_BMQN = (attn_GQN.reshape(B, HEADS, Q, N) + bias_MQN).softmax(dim=-1)
        v_GVN = v_BCHW.reshape(B * HEADS, DOWN_VALUE_DIM, N)
        out_GVQ = torch.bmm(v_GVN, attn_BMQN.flatten(0, 1).transpose(1, 2))
        y_BCHW: Tensor = self.proj(self.act(out_GVQ.reshape(local_BCHW.shape) + local_BCHW))
        return y_BCHW


class Downsample(nn.Module):
    """Halves a side x side map by a 3x3 ConvBN, plus an attention where asked for."""

    def __init__(self, dim_in: int, dim_out: int, side: int, *, attention: bool) -> None:
        super().__init__()
        self.conv = ConvBN(dim_in, dim_out, 3, stride=2)
        self.attn = AttentionDownsample(dim_in, dim_out, side) if attention else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW if self.attn is None else self.attn(x_BCHW) + y_BCHW


class Block(nn.Module):
    """Attention, where there is one, and FFN; a layer-scaled residual around each."""

    def __init__(self, dim: int, ratio: int, drop_path: float, attention: Attention | None) -> None:
        super().__init__()
        self.token_mixer = attention
        self.ls1 = LayerScale(dim) if attention is not None else nn.Identity()
        self.mlp = FFN(dim, ratio)
        self.ls2 = LayerScale(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.token_mixer is not None:
            x_BCHW = x_BCHW + self.drop_path(self.ls1(self.token_mixer(x_BCHW)))
        x_BCHW = x_BCHW + self.drop_path(self.ls2(self.mlp(x_BCHW)))
        return x_BCHW


class Stage(nn.Module):
    """An optional step to half the side, then a block per FFN ratio on a side x side map.

    The last `attention_depth` blocks attend, on half the side where `halved`.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        ratios: Ratios,
        drop_paths: Sequence[float],
        side: int,
        *,
        downsample: bool,
        attention_downsample: bool = False,
        attention_depth: int = 0,
        halved: bool = False,
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = Downsample(dim_in, dim, 2 * side, attention=attention_downsample)
        first = len(ratios) - attention_depth
        self.blocks = nn.Sequential(
            *(
                Block(dim, ratio, drop, Attention(dim, side, halved=halved) if i >= first else None)
                for i, (ratio, drop) in enumerate(zip(ratios, drop_paths, strict=True))
            )
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.blocks(self.downsample(x_BCHW))
        return y_BCHW


class EfficientFormerV2(nn.Module):
    """EfficientFormerV2 classifier with its two heads, the label's and the teacher's.

    Images (B, 3, input_size, input_size) to logits (B, num_classes): the mean of both heads in
    eval, the tuple of both in training, as the official code has it. `attention_depth` is that of
    stages 3 and 4, one for both or each its own. `input_size` is any multiple of 32; `drop_path` is
    the rate of the last block, rising from 0 in the first, and the one thing that `shape` does not
    hold. Raises ModelError for a side that is no such multiple, and for images of another size than
    the model's.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        mlp_ratios: tuple[Ratios, ...],
        attention_depth: int | tuple[int, ...],
        num_classes: int = 1000,
        input_size: int = INPUT_SIZE,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_side("EfficientFormerV2", input_size, STRIDE)
        both = (attention_depth,) * 2 if isinstance(attention_depth, int) else attention_depth
        self.shape = EfficientFormerV2Shape(widths, mlp_ratios, both)
        self.input_size = input_size
        self.stem = Stem(widths[0])
        depths = [len(ratios) for ratios in mlp_ratios]
        # On the CPU also where the model is built on the meta device, which keeps no numbers.
        rates = torch.split(torch.linspace(0, drop_path, sum(depths), device="cpu"), depths)
        dims_in = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *(
                Stage(
                    dims_in[i],
                    widths[i],
                    mlp_ratios[i],
                    rates[i].tolist(),
                    input_size // (4 * 2**i),
                    downsample=i > 0,
                    attention_downsample=i == 3,
                    attention_depth=both[i - 2] if i >= 2 else 0,
                    halved=i == 2,
                )
                for i in range(4)
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        self.head_dist = nn.Linear(widths[-1], num_classes)
        self.apply(_init_linear)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        side = self.input_size
        if x_BCHW.shape[1:] != (3, side, side):
            raise ModelError(
                f"this EfficientFormerV2 takes images of shape (B, 3, {side}, {side}), got "
                f"{tuple(x_BCHW.shape)}: its attention biases are for that size, so resize the "
                f"input, or make the model with input_size=N, N a multiple of {STRIDE}"
            )
        x_BCHW = self.norm(self.stages(self.stem(x_BCHW)))
        # keepdim: XNNPACK takes a mean over height and width in this form only.
        x_BC = x_BCHW.mean((2, 3), keepdim=True).flatten(1)
        logits: Tensor = self.head(x_BC)
        logits_dist: Tensor = self.head_dist(x_BC)
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_README = "EfficientFormer README"


def _config(
    name: str,
    *,
    params_m: float,
    macs_g: float,
    top1: float,
    latencies: tuple[Latency, ...],
) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="efficientformerv2",
        input_size=INPUT_SIZE,
        takes_size=True,
        size_multiple=STRIDE,
        crop_pct=0.95,
        params_m=params_m,
        macs_g=macs_g,
        top1=top1,
        top1_source=f"{_README}, 450 epochs",
        latencies=latencies,
    )


@register_model(
    _config(
        "efficientformerv2_s0",
        params_m=3.600,
        macs_g=0.3959,
        top1=76.2,
        latencies=(Latency("iPhone 12, Core ML", 0.9, _README),),
    )
)
def efficientformerv2_s0(num_classes: int = 1000, **kwargs: Any) -> EfficientFormerV2:
    ratios = ((4, 4), (4, 4), (4, 3, 3, 3, 4, 4), (4, 3, 3, 4))
    return EfficientFormerV2((32, 48, 96, 176), ratios, 2, num_classes, **kwargs)


@register_model(
    _config(
        "efficientformerv2_s1",
        params_m=6.186,
        macs_g=0.6520,
        top1=79.7,
        latencies=(
            Latency("iPhone 12, Core ML", 1.1, _README),
            Latency("iPhone 12, Core ML", 1.3, "SHViT paper, its own protocol"),
        ),
    )
)
def efficientformerv2_s1(num_classes: int = 1000, **kwargs: Any) -> EfficientFormerV2:
    ratios = ((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4))
    return EfficientFormerV2((32, 48, 120, 224), ratios, 2, num_classes, **kwargs)


@register_model(
    _config(
        "efficientformerv2_s2",
        params_m=12.710,
        macs_g=1.247,
        top1=82.0,
        latencies=(Latency("iPhone 12, Core ML", 1.6, _README),),
    )
)
def efficientformerv2_s2(
    num_classes: int = 1000, drop_path: float = 0.02, **kwargs: Any
) -> EfficientFormerV2:
    ratios = ((4,) * 4, (4,) * 4, (4,) * 2 + (3,) * 6 + (4,) * 4, (4,) * 2 + (3,) * 4 + (4,) * 2)
    return EfficientFormerV2(
        (32, 64, 144, 288), ratios, 4, num_classes, drop_path=drop_path, **kwargs
    )


@register_model(
    _config(
        "efficientformerv2_l",
        params_m=26.322,
        macs_g=2.553,
        top1=83.5,
        latencies=(Latency("iPhone 12, Core ML", 2.7, _README),),
    )
)
def efficientformerv2_l(
    num_classes: int = 1000, drop_path: float = 0.1, **kwargs: Any
) -> EfficientFormerV2:
    ratios = ((4,) * 5, (4,) * 5, (4,) * 4 + (3,) * 7 + (4,) * 4, (4,) * 3 + (3,) * 4 + (4,) * 3)
    return EfficientFormerV2(
        (40, 80, 192, 384), ratios, 6, num_classes, drop_path=drop_path, **kwargs
    )

"""EfficientFormer V1 (Li et al., NeurIPS 2022, arXiv 2206.01191).

Four stages at strides 4, 8, 16 and 32. Average pooling mixes neighbours on feature maps; the last
blocks of stage 4 are plain transformer blocks on its positions (7x7 at 224 pixels), with a learned
bias per head and offset. That table fixes the input's size when the model is made. Parameter names
are those of timm's `efficientformer_*`.

Shapes beside the published ones may have any widths and depths, no transformer blocks at all, or,
where all of stage 4 are such, more of them at the end of stage 3.
"""

# Shapes: B batch, C channels, H height, W width, N tokens (side*side),
#         M heads, G batch times heads, K query and key width, V value width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.models.registry import (
    Latency,
    ModelConfig,
    ModelError,
    check_side,
    register_model,
)
from edgevit.models.shapes import register_shape

STRIDE = 32
INPUT_SIZE = 224
HEADS, KEY_DIM, VALUE_DIM = 8, 32, 128
MLP_RATIO = 4
LAYER_SCALE_INIT = 1e-5
STAGES = 4
# About twenty times L7's, so that a slip in a file is an error and not an allocation.
MOST_WIDTH, MOST_DEPTH = 16384, 360

Four = tuple[int, int, int, int]


@register_shape("efficientformer")
@dataclass(frozen=True)
class EfficientFormerShape:
    """Channels, blocks, and how many of the last blocks attend, of each stage.

    The blocks that attend are the last ones of stages 3 and 4 together. Raises ModelError for
    anything that no network can be built of.
    """

    widths: Four
    depths: Four
    attention_depths: Four

    def __post_init__(self) -> None:
        for name, low, high in (
            ("widths", 2, MOST_WIDTH),
            ("depths", 1, MOST_DEPTH),
            ("attention_depths", 0, MOST_DEPTH),
        ):
            values = getattr(self, name)
            if (
                not isinstance(values, tuple)
                or len(values) != STAGES
                or not all(type(value) is int and low <= value <= high for value in values)
            ):
                raise ModelError(
                    f"{name} of an EfficientFormer are {STAGES} whole numbers from {low} to "
                    f"{high}, got {values!r}"
                )
        first, second, third, fourth = self.attention_depths
        if first or second or third > self.depths[2] or fourth > self.depths[3]:
            raise ModelError(
                f"attention_depths {self.attention_depths} must be 0 in stages 1 and 2, and at "
                f"most the depth in stages 3 and 4, {self.depths[2]} and {self.depths[3]}"
            )
        if third and fourth < self.depths[3]:
            raise ModelError(
                f"stage 3 may attend only where all {self.depths[3]} blocks of stage 4 do, got "
                f"attention_depths {self.attention_depths}"
            )

    def build(self, num_classes: int, input_size: int) -> EfficientFormer:
        """The network in eval mode, random weights, for pictures of input_size pixels a side."""
        if num_classes < 1:
            raise ModelError(f"expected at least 1 class, got {num_classes}")
        return EfficientFormer(self, num_classes, input_size).eval()


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2: (B, 3, H, W) to (B, dim, H/4, W/4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.act2 = nn.ReLU()


class Downsample(nn.Sequential):
    """3x3 convolution of stride 2, then BatchNorm."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim_out)


class LayerScale(nn.Module):
    """One learned factor per channel; `shape` lays the factors along the channel axis."""

    def __init__(self, dim: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(self.shape)


class Pooling(nn.Module):
    """Token mixer without weights: the mean of the 3x3 neighbours inside the map, minus x."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean_BCHW: Tensor = self.pool(x_BCHW)
        return mean_BCHW - x_BCHW


class ConvMLP(nn.Sequential):
    """Two 1x1 convolutions, each with BatchNorm, and a GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, MLP_RATIO * dim, 1)
        self.norm1 = nn.BatchNorm2d(MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(MLP_RATIO * dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)


class MLP(nn.Sequential):
    """Two linear maps and a GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)


class Attention(nn.Module):
    """Attention over the tokens of a side x side map, with a bias per head and (|dy|, |dx|)."""

    attention_bias_idxs: Tensor

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.scale = KEY_DIM**-0.5
        self.qkv = nn.Linear(dim, HEADS * (2 * KEY_DIM + VALUE_DIM))
        self.proj = nn.Linear(HEADS * VALUE_DIM, dim)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, side**2))
        position = torch.arange(side)
        offset = (position[:, None] - position[None, :]).abs()
        idxs = offset[:, None, :, None] * side + offset[None, :, None, :]
        self.register_buffer("attention_bias_idxs", idxs.reshape(side**2, side**2))

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, _ = x_BNC.shape
        # The rows of qkv are per head: [q | k | v] of head 0, then of head 1, ...
        qkv_GNC = self.qkv(x_BNC).reshape(B, N, HEADS, -1).transpose(1, 2).flatten(0, 1)
        q_GNK, k_GNK, v_GNV = torch.split(qkv_GNC, [KEY_DIM, KEY_DIM, VALUE_DIM], dim=-1)
        # bmm and not matmul: matmul exports an expand per operand, which XNNPACK does not take.
        attn_GNN = torch.bmm(q_GNK, k_GNK.transpose(1, 2)) * self.scale
        # Gathered at every call: a stored copy goes stale when weights load after eval().
        bias_MNN = self.attention_biases[:, self.attention_bias_idxs]
        attn_BMNN = (attn_GNN.reshape(B, HEADS, N, N) + bias_MNN).softmax(dim=-1)
        out_GNV = torch.bmm(attn_BMNN.flatten(0, 1), v_GNV)
        out_BNC = out_GNV.reshape(B, HEADS, N, VALUE_DIM).transpose(1, 2).flatten(2)
        y_BNC: Tensor = self.proj(out_BNC)
        return y_BNC


class PoolingBlock(nn.Module):
    """MB4D of the paper: pooling and convolutional MLP on a feature map, layer-scaled residuals."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_mixer = Pooling()
        self.ls1 = LayerScale(dim, (1, dim, 1, 1))
        self.mlp = ConvMLP(dim)
        self.ls2 = LayerScale(dim, (1, dim, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.ls1(self.token_mixer(x_BCHW))
        x_BCHW = x_BCHW + self.ls2(self.mlp(x_BCHW))
        return x_BCHW


class AttentionBlock(nn.Module):
    """MB3D of the paper: pre-norm attention and MLP on tokens, layer-scaled residuals."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixer = Attention(dim, side)
        self.ls1 = LayerScale(dim, (dim,))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)
        self.ls2 = LayerScale(dim, (dim,))

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.ls1(self.token_mixer(self.norm1(x_BNC)))
        x_BNC = x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))
        return x_BNC


class ToTokens(nn.Module):
    """(B, C, H, W) to (B, H*W, C)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.flatten(2).transpose(1, 2)


class ToMap(nn.Module):
    """(B, side*side, C) to (B, C, side, side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, _, C = x_BNC.shape
        return x_BNC.transpose(1, 2).reshape(B, C, self.side, self.side)


class Stage(nn.Module):
    """Stage `index`, from 0: all but the first halve the resolution, then pool, then attend.

    input_size is that of the network's images. The last stage gives tokens (B, N, C), the others
    maps (B, C, H, W).
    """

    def __init__(self, shape: EfficientFormerShape, index: int, input_size: int) -> None:
        super().__init__()
        dim, side = shape.widths[index], input_size // (4 * 2**index)
        attending = shape.attention_depths[index]
        is_last = index == STAGES - 1
        self.downsample = Downsample(shape.widths[index - 1], dim) if index else nn.Identity()
        blocks: list[nn.Module] = [
            PoolingBlock(dim) for _ in range(shape.depths[index] - attending)
        ]
        if attending or is_last:
            # A numbered member of its own, as in the checkpoints: later blocks count one more.
            blocks.append(ToTokens())
        blocks += [AttentionBlock(dim, side) for _ in range(attending)]
        if attending and not is_last:
            blocks.append(ToMap(side))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.downsample(x_BCHW))
        return y


class EfficientFormer(nn.Module):
    """EfficientFormer V1 classifier with its two heads, the label's and the teacher's.

    Images (B, 3, input_size, input_size) to logits (B, num_classes): the mean of both heads in
    eval, and the tuple of both in training, as the official code has it. `input_size` is any
    multiple of 32. Raises ModelError for a side that is none, and for images of another size than
    the model's.
    """

    def __init__(
        self, shape: EfficientFormerShape, num_classes: int = 1000, input_size: int = INPUT_SIZE
    ) -> None:
        super().__init__()
        check_side("EfficientFormer", input_size, STRIDE)
        self.shape = shape
        self.input_size = input_size
        self.stem = Stem(shape.widths[0])
        self.stages = nn.Sequential(*(Stage(shape, index, input_size) for index in range(STAGES)))
        self.norm = nn.LayerNorm(shape.widths[-1])
        self.head = nn.Linear(shape.widths[-1], num_classes)
        self.head_dist = nn.Linear(shape.widths[-1], num_classes)
        self.apply(init_linear)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        side = self.input_size
        if x_BCHW.shape[1:] != (3, side, side):
            raise ModelError(
                f"this EfficientFormer takes images of shape (B, 3, {side}, {side}), got "
                f"{tuple(x_BCHW.shape)}: its attention biases are for that size, so resize the "
                f"input, or make the model with input_size=N, N a multiple of {STRIDE}"
            )
        x_BNC: Tensor = self.norm(self.stages(self.stem(x_BCHW)))
        x_BC = x_BNC.mean(1)
        logits: Tensor = self.head(x_BC)
        logits_dist: Tensor = self.head_dist(x_BC)
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2


def init_linear(module: nn.Module) -> None:
    """The official initial weights of a linear map; nothing for other modules."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _config(
    name: str,
    *,
    params_m: float,
    macs_g: float,
    top1: float,
    top1_source: str,
    latencies: tuple[Latency, ...],
) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="efficientformer",
        input_size=INPUT_SIZE,
        takes_size=True,
        size_multiple=STRIDE,
        crop_pct=0.95,
        params_m=params_m,
        macs_g=macs_g,
        top1=top1,
        top1_source=top1_source,
        latencies=latencies,
    )


_README = "EfficientFormer README"


@register_model(
    _config(
        "efficientformer_l1",
        params_m=12.290,
        macs_g=1.291,
        top1=80.2,
        top1_source=f"{_README}, 1000 epochs",
        latencies=(
            Latency("iPhone 12, Core ML", 1.6, _README),
            Latency("iPhone 12, Core ML", 1.5, "SHViT paper, its own protocol"),
        ),
    )
)
def efficientformer_l1(num_classes: int = 1000, **kwargs: Any) -> EfficientFormer:
    shape = EfficientFormerShape((48, 96, 224, 448), (3, 2, 6, 4), (0, 0, 0, 1))
    return EfficientFormer(shape, num_classes, **kwargs)


@register_model(
    _config(
        "efficientformer_l3",
        params_m=31.406,
        macs_g=3.907,
        top1=82.4,
        top1_source=_README,
        latencies=(Latency("iPhone 12, Core ML", 3.0, _README),),
    )
)
def efficientformer_l3(num_classes: int = 1000, **kwargs: Any) -> EfficientFormer:
    shape = EfficientFormerShape((64, 128, 320, 512), (4, 4, 12, 6), (0, 0, 0, 4))
    return EfficientFormer(shape, num_classes, **kwargs)


@register_model(
    _config(
        "efficientformer_l7",
        params_m=82.229,
        macs_g=10.119,
        top1=83.3,
        top1_source=_README,
        latencies=(Latency("iPhone 12, Core ML", 7.0, _README),),
    )
)
def efficientformer_l7(num_classes: int = 1000, **kwargs: Any) -> EfficientFormer:
    shape = EfficientFormerShape((96, 192, 384, 768), (6, 6, 18, 8), (0, 0, 0, 8))
    return EfficientFormer(shape, num_classes, **kwargs)

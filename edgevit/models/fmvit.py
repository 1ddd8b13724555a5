"""FMViT-style networks, after the abstract of Tan, Geng and Xie (arXiv 2311.05707).

The authors published neither code nor weights, and only the abstract was at hand: this is a
reconstruction in its spirit, and no checkpoint of theirs can fit it. What the abstract and digests
of the paper name, and this file has: a convolutional fusion block (CFB); a frequency-mixing block
(FMB) that blends several groups of high frequency, from convolutions, with low frequency, from
attention; a reparameterised lightweight multi-head self-attention (RLMHSA); convolutional
multi-group reparameterisation, parallel branches that merge into one convolution; five sizes.

Everything else is our choice: what is inside each of these; four stages at strides 4, 8, 16 and 32,
in which some CFBs and one FMB repeat, as in Next-ViT; widths, depths, ratios and head sizes; which
convolutions have branches, and which (`MultiGroupConv`); three high-frequency groups with depthwise
kernels 3, 5 and 7; keys and values from a map that a strided depthwise convolution has shrunk to
stride 32; BatchNorm and ReLU throughout; no position tables, so that any input whose sides are
multiples of 32 pixels will do.

We take the published sizes for those of the deployed networks, so that ours are set by the folded
form, within 5 percent of each; the registry counts the training form, as for every family. In
millions of parameters and 1e9 multiply-adds at 224x224, 1000 classes:

                 published      folded           training
    fmvit_t      2.0   0.3       2.033  0.301     2.447  0.360
    fmvit_s      6.4   0.8       6.241  0.786     7.544  0.945
    fmvit_m     12.8   2.0      12.794  2.002    15.702  2.439
    fmvit_b     24.3   4.2      24.113  4.129    29.444  5.028
    fmvit_l     35.3   7.1      34.860  7.195    42.480  8.769

The paper's accuracies are those of its own networks and are not listed as ours.
"""

# Shapes: B batch, C channels, H height, W width, L low-frequency channels, G batch times heads,
#         N positions (H*W), M positions of the keys, K query and key width, V value width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from edgevit.models.registry import ModelConfig, ModelError, check_side, register_model
from edgevit.models.shapes import register_shape

STAGES = 4
STRIDE = 32
INPUT_SIZE = 224
KEY_DIM, VALUE_DIM = 16, 32
GROUPS = (1, 4)  # of the parallel branches of a dense convolution
HIGH_KERNELS = (3, 5, 7)
MLP_RATIO = 2
CONV, MIX = 0, 1  # kinds of blocks: CFB and FMB


class ConvBN(nn.Sequential):
    """Convolution without bias, then BatchNorm; padded to keep its stride's size if `padded`."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        padded: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padded else 0
        self.conv = nn.Conv2d(
            dim_in, dim_out, kernel, stride, padding=padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(dim_out)


class MultiGroupConv(nn.Module):
    """Parallel ConvBN of different group counts, added; folding makes one convolution of them.

    One kxk branch for each of `groups`; for a depthwise kernel a 1x1 branch beside it; and a
    BatchNorm of the input itself where the shape stays.
    """

    def __init__(
        self, dim_in: int, dim_out: int, kernel: int = 1, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        if depthwise:
            shapes = [(kernel, dim_in), (1, dim_in)]
        else:
            shapes = [(kernel, groups) for groups in GROUPS]
        self.branches = nn.ModuleList(
            ConvBN(dim_in, dim_out, size, groups=groups) for size, groups in shapes
        )
        self.skip = nn.BatchNorm2d(dim_in) if dim_in == dim_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first, *others = self.branches
        y_BCHW: Tensor = first(x_BCHW)
        for branch in others:
            y_BCHW = y_BCHW + branch(x_BCHW)
        return y_BCHW if self.skip is None else y_BCHW + self.skip(x_BCHW)


class MLP(nn.Sequential):
    """Two 1x1 multi-group convolutions with a ReLU between; twice as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = MultiGroupConv(dim, MLP_RATIO * dim)
        self.act = nn.ReLU()
        self.fc2 = MultiGroupConv(MLP_RATIO * dim, dim)


class CFB(nn.Module):
    """Convolutional fusion block: neighbours, then channels; a residual around each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer = nn.Sequential(
            MultiGroupConv(dim, dim, 3, depthwise=True), nn.ReLU(), MultiGroupConv(dim, dim)
        )
        self.mlp = MLP(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.mixer(x_BCHW)
        x_BCHW = x_BCHW + self.mlp(x_BCHW)
        return x_BCHW


class RLMHSA(nn.Module):
    """Reparameterised lightweight attention: (B, C, H, W) to the same.

    Keys and values come from a map `shrink` times smaller, keys are half as wide as values, and
    every projection is a multi-group convolution.
    """

    def __init__(self, dim: int, shrink: int) -> None:
        super().__init__()
        self.heads = dim // VALUE_DIM
        self.scale = KEY_DIM**-0.5
        self.shrink: nn.Module = nn.Identity()
        if shrink > 1:
            self.shrink = ConvBN(dim, dim, shrink, stride=shrink, groups=dim, padded=False)
        self.q = MultiGroupConv(dim, self.heads * KEY_DIM)
        self.k = MultiGroupConv(dim, self.heads * KEY_DIM)
        self.v = MultiGroupConv(dim, dim)
        self.proj = MultiGroupConv(dim, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        small_BCHW = self.shrink(x_BCHW)
        G = x_BCHW.shape[0] * self.heads
        q_GKN = self.q(x_BCHW).reshape(G, KEY_DIM, -1)
        k_GKM = self.k(small_BCHW).reshape(G, KEY_DIM, -1)
        v_GVM = self.v(small_BCHW).reshape(G, VALUE_DIM, -1)
        # bmm and not matmul: matmul exports an expand per operand, which XNNPACK does not take.
        attn_GNM = (torch.bmm(q_GKN.transpose(1, 2), k_GKM) * self.scale).softmax(dim=-1)
        out_GVN = torch.bmm(v_GVM, attn_GNM.transpose(1, 2))
        y_BCHW: Tensor = self.proj(out_GVN.reshape(x_BCHW.shape))
        return y_BCHW


class HighFrequency(nn.Sequential):
    """One group of high frequency: 1x1 convolution, ReLU, depthwise convolution, ReLU."""

    def __init__(self, dim_in: int, dim: int, kernel: int) -> None:
        super().__init__()
        self.proj = MultiGroupConv(dim_in, dim)
        self.act1 = nn.ReLU()
        self.mix = MultiGroupConv(dim, dim, kernel, depthwise=True)
        self.act2 = nn.ReLU()


def low_width(dim: int) -> int:
    """Channels of low frequency of a mixing block: half of `dim`, in whole heads."""
    return dim // (2 * VALUE_DIM) * VALUE_DIM


def high_width(dim: int) -> int:
    """Channels of each of its high-frequency groups, a multiple of 4."""
    return (dim - low_width(dim)) // len(HIGH_KERNELS) // 4 * 4


class FMB(nn.Module):
    """Frequency-mixing block: attention and high-frequency groups side by side, blended; MLP.

    Half of the channels, in whole heads, are of low frequency.
    """

    def __init__(self, dim: int, shrink: int) -> None:
        super().__init__()
        low_dim, high_dim = low_width(dim), high_width(dim)
        self.low = MultiGroupConv(dim, low_dim)
        self.attention = RLMHSA(low_dim, shrink)
        self.high = nn.ModuleList(HighFrequency(dim, high_dim, kernel) for kernel in HIGH_KERNELS)
        self.blend = MultiGroupConv(low_dim + len(HIGH_KERNELS) * high_dim, dim)
        self.mlp = MLP(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        low_BLHW = self.low(x_BCHW)
        low_BLHW = low_BLHW + self.attention(low_BLHW)
        high = [group(x_BCHW) for group in self.high]
        x_BCHW = x_BCHW + self.blend(torch.cat([low_BLHW, *high], dim=1))
        x_BCHW = x_BCHW + self.mlp(x_BCHW)
        return x_BCHW


class Stem(nn.Sequential):
    """Two halvings of the picture, (B, 3, H, W) to (B, dim, H / 4, W / 4)."""

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__(
            ConvBN(3, hidden, 3, stride=2),
            nn.ReLU(),
            ConvBN(hidden, dim, 3, stride=2),
            nn.ReLU(),
        )


@register_shape("fmvit")
@dataclass(frozen=True)
class FMViTShape:
    """Four stages: widths in channels, and what their blocks are, in order (CONV or MIX).

    Raises ValueError where there is no such network.
    """

    stem_dim: int
    widths: tuple[int, ...]
    kinds: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.widths) != STAGES or len(self.kinds) != STAGES:
            raise ValueError(f"expected {STAGES} stages")
        if self.stem_dim < 1 or any(dim < 4 or dim % 4 for dim in self.widths):
            raise ValueError("widths are multiples of 4, for convolutions of 4 groups")
        for dim, kinds in zip(self.widths, self.kinds, strict=True):
            if not kinds or not set(kinds) <= {CONV, MIX}:
                raise ValueError(f"a stage has blocks of the kinds {CONV} and {MIX}, got {kinds}")
            if MIX in kinds and not (low_width(dim) and high_width(dim)):
                raise ValueError(f"a mixing block has {2 * VALUE_DIM} channels or more, got {dim}")

    def build(self, num_classes: int, input_size: int) -> FMViT:
        """The network in eval mode, random weights. Raises ModelError for a side it cannot take."""
        check_side("FMViT", input_size, STRIDE)
        return FMViT.of_shape(self, num_classes).eval()


def shrink_of(stage: int) -> int:
    """How much smaller than a stage's map that of its keys is, so that it lies at STRIDE."""
    return int(STRIDE // (4 * 2**stage))


class FMViT(nn.Module):
    """FMViT-style classifier, training form (every branch and BatchNorm apart).

    Images (B, 3, H, W), H and W multiples of 32, to logits (B, num_classes). A stage repeats
    `depths` CFBs and one FMB `repeats` times; without repeats it has CFBs alone. Raises ModelError
    at another size.
    """

    def __init__(
        self,
        stem_dim: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        repeats: tuple[int, ...],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        kinds = tuple(
            (*[CONV] * depth, MIX) * times if times else (CONV,) * depth
            for depth, times in zip(depths, repeats, strict=True)
        )
        self._assemble(FMViTShape(stem_dim, widths, kinds), num_classes)

    @classmethod
    def of_shape(cls, shape: FMViTShape, num_classes: int) -> Self:
        """The network of a shape whose blocks need not repeat."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._assemble(shape, num_classes)
        return network

    def _assemble(self, shape: FMViTShape, num_classes: int) -> None:
        self.shape = shape
        dim_in = shape.widths[0]
        self.stem = Stem(shape.stem_dim, dim_in)
        stages: list[nn.Module] = []
        for index, (dim, kinds) in enumerate(zip(shape.widths, shape.kinds, strict=True)):
            downsample = ConvBN(dim_in, dim, 3, stride=2) if index else nn.Identity()
            blocks = (FMB(dim, shrink_of(index)) if kind == MIX else CFB(dim) for kind in kinds)
            stages.append(nn.Sequential(downsample, *blocks))
            dim_in = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(dim_in)
        self.head = nn.Linear(dim_in, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        _check_shape(x_BCHW)
        x_BCHW = self.norm(self.stages(self.stem(x_BCHW)))
        # keepdim: XNNPACK takes a mean over height and width in this form only.
        logits: Tensor = self.head(x_BCHW.mean((2, 3), keepdim=True).flatten(1))
        return logits


def _check_shape(x_BCHW: Tensor) -> None:
    shape = tuple(x_BCHW.shape)
    if len(shape) != 4 or shape[1] != 3 or any(side < 1 or side % STRIDE for side in shape[2:]):
        raise ModelError(
            f"FMViT takes images of shape (B, 3, H, W) with H and W multiples of {STRIDE}, got "
            f"{shape}: its keys lie on a grid of {STRIDE} pixels, so resize the input"
        )


def _config(name: str, *, params_m: float, macs_g: float) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="fmvit",
        input_size=INPUT_SIZE,
        size_multiple=STRIDE,
        crop_pct=0.875,
        params_m=params_m,
        macs_g=macs_g,
    )


@register_model(_config("fmvit_t", params_m=2.447, macs_g=0.35965))
def fmvit_t(num_classes: int = 1000, **kwargs: Any) -> FMViT:
    return FMViT(16, (32, 64, 128, 192), (2, 2, 2, 1), (0, 1, 2, 2), num_classes, **kwargs)


@register_model(_config("fmvit_s", params_m=7.544, macs_g=0.9453))
def fmvit_s(num_classes: int = 1000, **kwargs: Any) -> FMViT:
    return FMViT(24, (48, 96, 192, 384), (2, 3, 2, 1), (0, 1, 2, 2), num_classes, **kwargs)


@register_model(_config("fmvit_m", params_m=15.702, macs_g=2.4395))
def fmvit_m(num_classes: int = 1000, **kwargs: Any) -> FMViT:
    return FMViT(32, (64, 128, 256, 384), (2, 3, 3, 2), (0, 1, 4, 2), num_classes, **kwargs)


@register_model(_config("fmvit_b", params_m=29.444, macs_g=5.0275))
def fmvit_b(num_classes: int = 1000, **kwargs: Any) -> FMViT:
    return FMViT(48, (96, 192, 384, 576), (2, 3, 4, 1), (0, 1, 3, 2), num_classes, **kwargs)


@register_model(_config("fmvit_l", params_m=42.480, macs_g=8.7686))
def fmvit_l(num_classes: int = 1000, **kwargs: Any) -> FMViT:
    return FMViT(64, (128, 256, 512, 640), (3, 3, 4, 2), (0, 1, 3, 1), num_classes, **kwargs)

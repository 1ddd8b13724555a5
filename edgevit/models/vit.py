"""ViT (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) and DeiT (Touvron et al., ICML 2021, arXiv
2012.12877), on patches of 16x16 pixels.

A plain transformer over the image's patches and a class token, from which the head reads. The
distilled DeiTs have a second token and head, which learned from a teacher. A learned position per
token fixes the input's size when the model is made. Parameter names are those of timm's
`vit_*_patch16_224` and `deit_*_patch16_224`.
"""

# Shapes: B batch, C width of the residual stream, H height, W width, P prefix tokens (class,
#         distillation), N tokens (prefix and patches), M heads, K head width, G batch times heads.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.models.registry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    ModelError,
    check_side,
    register_model,
)

PATCH = 16
INPUT_SIZE = 224
MLP_RATIO = 4
NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """A linear map of each patch: (B, 3, H, W) to (B, H/16 * W/16, dim), row by row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BNC: Tensor = self.proj(x_BCHW).flatten(2).transpose(1, 2)
        return x_BNC


class Attention(nn.Module):
    """Multi-head attention; its inner width num_heads * head_dim need not be `dim`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, _ = x_BNC.shape
        M, K = self.num_heads, self.head_dim
        # The rows of qkv: q of every head, then k of every head, then v. One transpose for all
        # three, and slices, not a split: XNNPACK does not take a split.
        qkv_BHNK = self.qkv(x_BNC).reshape(B, N, 3 * M, K).transpose(1, 2)
        q_GNK = qkv_BHNK[:, :M].flatten(0, 1)
        k_GNK = qkv_BHNK[:, M : 2 * M].flatten(0, 1)
        v_GNK = qkv_BHNK[:, 2 * M :].flatten(0, 1)
        # bmm and not matmul: matmul exports an expand per operand, which XNNPACK does not take.
        attn_GNN = (torch.bmm(q_GNK, k_GNK.transpose(1, 2)) * self.scale).softmax(dim=-1)
        out_GNK = torch.bmm(attn_GNN, v_GNK)
        y_BNC: Tensor = self.proj(out_GNK.reshape(B, M, N, K).transpose(1, 2).flatten(2))
        return y_BNC


class MLP(nn.Sequential):
    """Two linear maps and a GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)


class Block(nn.Module):
    """Pre-norm attention and MLP, a residual around each."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, mlp_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        x_BNC = x_BNC + self.mlp(self.norm2(x_BNC))
        return x_BNC


class VisionTransformer(nn.Module):
    """ViT classifier; with `distilled`, two tokens and two heads, the label's and the teacher's.

    Images (B, 3, input_size, input_size) to logits (B, num_classes). Distilled, they are the mean
    of both heads in eval and the tuple of both in training. `input_size` is any multiple of 16.
    `head_dim` is embed_dim / num_heads where not given, `mlp_dim` 4 * embed_dim; a model of which
    whole heads were taken away says its own. Raises ModelError for widths or a side that do not
    divide, and for images of another size than the model's.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_classes: int = 1000,
        input_size: int = INPUT_SIZE,
        *,
        head_dim: int | None = None,
        mlp_dim: int | None = None,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        check_side("ViT", input_size, PATCH)
        if head_dim is None:
            if embed_dim % num_heads:
                raise ModelError(
                    f"embed_dim {embed_dim} does not divide by {num_heads} heads: give head_dim"
                )
            head_dim = embed_dim // num_heads
        mlp_dim = MLP_RATIO * embed_dim if mlp_dim is None else mlp_dim
        self.input_size = input_size
        prefix = 2 if distilled else 1
        tokens = prefix + (input_size // PATCH) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.patch_embed = PatchEmbed(embed_dim)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, head_dim, mlp_dim) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(embed_dim, num_classes)
        self.head_dist = nn.Linear(embed_dim, num_classes) if distilled else None
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        for table in (self.pos_embed, self.dist_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        side = self.input_size
        if x_BCHW.shape[1:] != (3, side, side):
            raise ModelError(
                f"this ViT takes images of shape (B, 3, {side}, {side}), got "
                f"{tuple(x_BCHW.shape)}: its position embeddings are for that size, so resize the "
                f"input, or make the model with input_size=N, N a multiple of {PATCH}"
            )
        prefix_1PC: Tensor = self.cls_token
        if self.dist_token is not None:
            prefix_1PC = torch.cat([prefix_1PC, self.dist_token], dim=1)
        P, N = prefix_1PC.shape[1], self.pos_embed.shape[1]
        # Zeros in front of the patches, and the tokens added with the positions: the usual expand
        # and cat are left outside by XNNPACK. The sums are the same to the last bit.
        table_1NC = F.pad(prefix_1PC, (0, 0, 0, N - P)) + self.pos_embed
        x_BNC = F.pad(self.patch_embed(x_BCHW), (0, 0, P, 0)) + table_1NC
        # Only the prefix is read from here on, and a norm acts on each token alone.
        x_BPC = self.norm(self.blocks(x_BNC)[:, :P])
        # A slice and not a select, which XNNPACK does not take.
        logits: Tensor = self.head(x_BPC[:, :1].flatten(1))
        if self.head_dist is None:
            return logits
        logits_dist: Tensor = self.head_dist(x_BPC[:, 1:].flatten(1))
        if self.training:
            return logits, logits_dist
        # Halved one by one, so that each half folds into its head: the heads read different tokens.
        return logits * 0.5 + logits_dist * 0.5


def _vit(name: str, *, params_m: float, macs_g: float, top1: float, weights: str) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="vit",
        input_size=INPUT_SIZE,
        takes_size=True,
        size_multiple=PATCH,
        crop_pct=0.9,
        params_m=params_m,
        macs_g=macs_g,
        top1=top1,
        top1_source=f"timm results-imagenet.csv, {weights}",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _deit(name: str, *, params_m: float, macs_g: float, top1: float) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="vit",
        input_size=INPUT_SIZE,
        takes_size=True,
        size_multiple=PATCH,
        crop_pct=0.9,
        params_m=params_m,
        macs_g=macs_g,
        top1=top1,
        top1_source="DeiT README",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


_AUGREG, _AUGREG2 = "augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k"


@register_model(_vit("vit_tiny", params_m=5.717, macs_g=1.254, top1=75.454, weights=_AUGREG))
def vit_tiny(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(192, 12, 3, num_classes, **kwargs)


@register_model(_vit("vit_small", params_m=22.051, macs_g=4.599, top1=81.384, weights=_AUGREG))
def vit_small(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(384, 12, 6, num_classes, **kwargs)


@register_model(_vit("vit_base", params_m=86.568, macs_g=17.564, top1=85.096, weights=_AUGREG2))
def vit_base(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(768, 12, 12, num_classes, **kwargs)


@register_model(_vit("vit_large", params_m=304.327, macs_g=61.555, top1=85.834, weights=_AUGREG))
def vit_large(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(1024, 24, 16, num_classes, **kwargs)


@register_model(_deit("deit_tiny", params_m=5.717, macs_g=1.254, top1=72.2))
def deit_tiny(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(192, 12, 3, num_classes, **kwargs)


@register_model(_deit("deit_small", params_m=22.051, macs_g=4.599, top1=79.9))
def deit_small(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(384, 12, 6, num_classes, **kwargs)


@register_model(_deit("deit_base", params_m=86.568, macs_g=17.564, top1=81.8))
def deit_base(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(768, 12, 12, num_classes, **kwargs)


@register_model(_deit("deit_tiny_distilled", params_m=5.911, macs_g=1.261, top1=74.5))
def deit_tiny_distilled(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(192, 12, 3, num_classes, distilled=True, **kwargs)


@register_model(_deit("deit_small_distilled", params_m=22.436, macs_g=4.624, top1=81.2))
def deit_small_distilled(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(384, 12, 6, num_classes, distilled=True, **kwargs)


@register_model(_deit("deit_base_distilled", params_m=87.338, macs_g=17.657, top1=83.4))
def deit_base_distilled(num_classes: int = 1000, **kwargs: Any) -> VisionTransformer:
    return VisionTransformer(768, 12, 12, num_classes, distilled=True, **kwargs)

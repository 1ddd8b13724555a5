"""MetaPath supernet of EfficientFormer (Li et al., NeurIPS 2022, arXiv 2206.01191, section 3.3).

Every block is a weighted sum of what may stand in its place: the pooling block or nothing in stages
1 and 2, in stages 3 and 4 the attention block too. The weights are softmax((alpha + noise) / tau),
trained together with the network; what an alpha leans to says what its block is worth.

The paper prints noise from U(0, 1) and calls the whole a Gumbel softmax; the Gumbel noise that the
name means (arXiv 1611.01144) is the default here. How tau falls is not published: here it falls
geometrically.
"""

# Shapes: B batch, C channels, H height, W width, N tokens, P paths.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from converters.slim.errors import SlimError
from edgevit.models.efficientformer import (
    STAGES,
    STRIDE,
    AttentionBlock,
    Downsample,
    EfficientFormerShape,
    LayerScale,
    PoolingBlock,
    Stem,
    ToMap,
    ToTokens,
    init_linear,
)
from edgevit.models.registry import ModelError, check_side

# Ours; none of these is published. The networks' own layer scale of 1e-5 is for hundreds of epochs:
# with it all paths of a block begin as the identity, and its alphas have nothing to go by.
LAYER_SCALE = 0.1
TAU_START, TAU_END = 5.0, 0.5
STEPS = 1000

ATTENDING = (2, 3)  # stages whose blocks may attend
POOL, ATTENTION, IDENTITY = "pool", "attention", "identity"

Noise = Literal["gumbel", "uniform"]


class MetaBlock(nn.Module):
    """The weighted sum of a pooling block, in some stages an attention block, and the input.

    (B, C, H, W) to the same. `alpha` (P,) is in the order of `paths`.
    """

    def __init__(self, dim: int, side: int, attends: bool) -> None:
        super().__init__()
        self.pool = PoolingBlock(dim)
        self.attention = AttentionBlock(dim, side) if attends else None
        self.to_tokens, self.to_map = ToTokens(), ToMap(side)
        self.paths = (POOL, ATTENTION, IDENTITY) if attends else (POOL, IDENTITY)
        self.alpha = nn.Parameter(torch.zeros(len(self.paths)))

    def forward(self, x_BCHW: Tensor, weights_P: Tensor) -> Tensor:
        y_BCHW: Tensor = weights_P[0] * self.pool(x_BCHW) + weights_P[-1] * x_BCHW
        if self.attention is not None:
            tokens_BNC = self.attention(self.to_tokens(x_BCHW))
            y_BCHW = y_BCHW + weights_P[1] * self.to_map(tokens_BNC)
        return y_BCHW


class MetaStage(nn.Module):
    """Stage `index`, from 0: all but the first halve the resolution, then the blocks."""

    def __init__(self, shape: EfficientFormerShape, index: int, input_size: int) -> None:
        super().__init__()
        dim, side = shape.widths[index], input_size // (4 * 2**index)
        self.downsample = Downsample(shape.widths[index - 1], dim) if index else nn.Identity()
        attends = index in ATTENDING
        self.blocks = nn.ModuleList(
            MetaBlock(dim, side, attends) for _ in range(shape.depths[index])
        )

    def forward(self, x_BCHW: Tensor, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        x_BCHW = self.downsample(x_BCHW)
        for block in self.metas():
            x_BCHW = block(x_BCHW, weights_of(block.alpha))
        return x_BCHW

    def metas(self) -> Iterator[MetaBlock]:
        """Its blocks, in order."""
        return (block for block in self.blocks if isinstance(block, MetaBlock))


class EfficientFormerSupernet(nn.Module):
    """Images (B, 3, input_size, input_size) to logits (B, num_classes), as EfficientFormer gives.

    `shape` is the largest of its subnets: the given one, with attention in all of stages 3 and 4.
    Of the network itself only widths and depths count. Noise is drawn in training, one number a
    path and step, from torch's generator; in eval the weights are softmax(alpha / tau). tau falls
    from TAU_START to TAU_END over the training steps that `anneal_over` says, and stays there.
    """

    steps_taken: Tensor
    anneal_steps: Tensor

    def __init__(
        self,
        shape: EfficientFormerShape,
        num_classes: int,
        input_size: int,
        *,
        noise: Noise = "gumbel",
    ) -> None:
        super().__init__()
        check_side("EfficientFormer", input_size, STRIDE)
        if noise not in ("gumbel", "uniform"):
            raise SlimError(f"unknown noise '{noise}', expected gumbel or uniform")
        self.shape = replace(shape, attention_depths=(0, 0, shape.depths[2], shape.depths[3]))
        self.input_size = input_size
        self.noise = noise
        self.stem = Stem(shape.widths[0])
        self.stages = nn.ModuleList(MetaStage(shape, i, input_size) for i in range(STAGES))
        self.norm = nn.LayerNorm(shape.widths[-1])
        self.head = nn.Linear(shape.widths[-1], num_classes)
        self.head_dist = nn.Linear(shape.widths[-1], num_classes)
        # In the state, so that a continued run goes on at the tau where it was.
        self.register_buffer("steps_taken", torch.tensor(0))
        self.register_buffer("anneal_steps", torch.tensor(STEPS))
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, LAYER_SCALE)

    def metas(self) -> list[list[MetaBlock]]:
        """The blocks of every stage."""
        return [list(stage.metas()) for stage in self.stages if isinstance(stage, MetaStage)]

    def anneal_over(self, steps: int) -> None:
        """Let tau fall over that many training steps, before the first. Raises SlimError."""
        if steps < 1:
            raise SlimError(f"tau falls over at least 1 training step, got {steps}")
        self.anneal_steps.fill_(steps)

    def tau(self) -> float:
        """The temperature of the step to come."""
        share = min(int(self.steps_taken) / int(self.anneal_steps), 1.0)
        return float(TAU_START * (TAU_END / TAU_START) ** share)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        side = self.input_size
        if x_BCHW.shape[1:] != (3, side, side):
            raise ModelError(
                f"this supernet takes images of shape (B, 3, {side}, {side}), got "
                f"{tuple(x_BCHW.shape)}: its attention biases are for that size"
            )
        tau = self.tau()
        x_BCHW = self.stem(x_BCHW)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW, lambda alpha_P: self._weights(alpha_P, tau))
        if self.training:
            self.steps_taken += 1
        x_BC = self.norm(x_BCHW.flatten(2).transpose(1, 2)).mean(1)
        logits: Tensor = self.head(x_BC)
        logits_dist: Tensor = self.head_dist(x_BC)
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2

    def _weights(self, alpha_P: Tensor, tau: float) -> Tensor:
        if not self.training:
            return (alpha_P / tau).softmax(0)
        if self.noise == "uniform":
            noise_P = torch.rand_like(alpha_P)
        else:
            # -log(-log u) for u from U(0, 1): -log u is exponential.
            noise_P = -torch.empty_like(alpha_P).exponential_().log()
        return ((alpha_P + noise_P) / tau).softmax(0)

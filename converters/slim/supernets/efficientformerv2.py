"""A width-, depth- and expansion-elastic EfficientFormerV2, trained once for all of its subnets.

Weights are shared: a subnet's layers are the first channels of the whole network's (Slimmable
Networks, arXiv 1812.08928). An FFN's expansion is the channels of its depthwise convolution, a
stage's width the outputs of the convolutions that end in its stream. BatchNorm is switched: what a
layer normalises depends on the widths around it, so that each of these has weights and statistics
of its own. A subnet leaves out blocks, or only the attention of some.

Every training step runs four subnets (the sandwich rule, arXiv 1903.05134): the largest, the
smallest, and two random ones, whose choices come from torch's default generator.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.slim.families.base import Subnet
from converters.slim.families.efficientformerv2_space import (
    Layer,
    attends,
    channels,
    check_part,
    choices,
    layers,
    own_shape,
    random_subnet,
    smallest,
    spaces_of,
    whole,
)
from converters.slim.slicing import Spaces
from edgevit.models.efficientformerv2 import (
    Block,
    ConvBN,
    EfficientFormerV2,
    EfficientFormerV2Shape,
    LayerScale,
)

RANDOM_SUBNETS = 2
# The deployed network's own 1e-5 keeps every branch shut for longer than a short training lasts.
LAYER_SCALE_START = 0.1

Key = tuple[int, ...]
"""Channels of the spaces that a layer's statistics hang on."""


class FirstChannels(nn.Conv2d):
    """A convolution by its first channels: as many inputs as come, `used` outputs.

    A depthwise one has an output for each input. The parameters are those of the whole.
    """

    used: int

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inputs = x_BCHW.shape[1]
        outputs, groups = (inputs, inputs) if self.groups > 1 else (self.used, 1)
        weight = self.weight[:outputs, : inputs // groups]
        bias = None if self.bias is None else self.bias[:outputs]
        padding: tuple[int, ...] = self.padding  # type: ignore[assignment]
        return F.conv2d(x_BCHW, weight, bias, self.stride, padding, groups=groups)


class FirstInputs(nn.Linear):
    """A linear map by its first inputs, (B, C) to (B, out)."""

    def forward(self, x_BC: Tensor) -> Tensor:
        return F.linear(x_BC, self.weight[:, : x_BC.shape[1]], self.bias)


class FirstScales(LayerScale):
    """Layer scales by their first channels."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.gamma[: x_BCHW.shape[1]].view(1, -1, 1, 1)


class SwitchedNorm(nn.Module):
    """A BatchNorm for each of the widths that a layer can run at; `key` says which runs.

    They lie one after the other in four vectors, and not in modules of their own: so every
    parameter has a gradient in every step, which AdamW's moments and an exact resume need, and
    vectors are spared from weight decay. A BatchNorm with more channels than come is used by its
    first.
    """

    running_mean: Tensor
    running_var: Tensor
    key: Key

    def __init__(self, sizes: dict[Key, int], like: nn.BatchNorm2d) -> None:
        super().__init__()
        assert like.momentum is not None
        self.eps, self.momentum, self.sizes = like.eps, like.momentum, sizes
        ends = list(accumulate(sizes.values()))
        self.starts = dict(zip(sizes, (0, *ends), strict=False))
        total = ends[-1]
        self.weight = nn.Parameter(torch.ones(total))
        self.bias = nn.Parameter(torch.zeros(total))
        self.register_buffer("running_mean", torch.zeros(total))
        self.register_buffer("running_var", torch.ones(total))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        start = self.starts[self.key]
        run = slice(start, start + x_BCHW.shape[1])
        # The statistics are updated through these views.
        return F.batch_norm(
            x_BCHW, self.running_mean[run], self.running_var[run], self.weight[run],
            self.bias[run], self.training, self.momentum, self.eps,
        )  # fmt: skip


class ElasticBlock(Block):
    """A block that may be left out, or run without its attention."""

    runs = True
    attending = True

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.runs:
            return x_BCHW
        if self.attending and self.token_mixer is not None:
            x_BCHW = x_BCHW + self.ls1(self.token_mixer(x_BCHW))
        x_BCHW = x_BCHW + self.ls2(self.mlp(x_BCHW))
        return x_BCHW


class EfficientFormerV2Supernet(EfficientFormerV2):
    """All subnets of a shape. Images (B, 3, side, side) to logits (B, classes), both heads' mean.

    In eval it is the largest subnet; in training it gives a tuple of four subnets' logits: of the
    largest, the smallest and two random ones. Convolutions, scales and tables have the names that
    they have in the plain network; a BatchNorm has the same name, and holds all of its widths.
    """

    def __init__(self, shape: EfficientFormerV2Shape, classes: int, side: int) -> None:
        super().__init__(shape.widths, shape.mlp_ratios, shape.attention_depths, classes, side)
        self.largest, self.smallest = whole(shape), smallest(shape)
        self._blocks: dict[tuple[int, int], ElasticBlock] = {}
        for stage, row in enumerate(shape.mlp_ratios):
            for index, ratio in enumerate(row):
                path = f"stages.{stage}.blocks.{index}"
                attention: Any = self.get_submodule(path).token_mixer
                block = ElasticBlock(shape.widths[stage], ratio, 0.0, attention)
                self._blocks[stage, index] = block
                self.set_submodule(path, block)
        self._convs: list[tuple[Layer, FirstChannels]] = []
        self._norms: dict[str, tuple[Layer, SwitchedNorm]] = {}
        for path, layer in layers(shape).items():
            self._make_elastic(path, layer)

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        if not self.training:
            return self.run(x_BCHW, self.largest)
        drawn = [random_subnet(self.shape, _draw) for _ in range(RANDOM_SUBNETS)]
        return tuple(self.run(x_BCHW, each) for each in (self.largest, self.smallest, *drawn))

    def run(self, x_BCHW: Tensor, subnet: Subnet) -> Tensor:
        """Logits (B, classes) of one subnet. Raises SlimError for one that is no part of this."""
        self._choose(subnet)
        outputs = super().forward(x_BCHW)
        return outputs if isinstance(outputs, Tensor) else (outputs[0] + outputs[1]) / 2

    def spaces(self) -> Spaces:
        """The space of each dim of its tensors; a BatchNorm's own is named after it."""
        own = {
            f"{path}.{name}": (path,)
            for path, (_, norm) in self._norms.items()
            for name in norm.state_dict()
        }
        return {**spaces_of(self.state_dict(), self.shape), **own}

    def slices(self, subnet: Subnet) -> dict[str, Tensor]:
        """The channels of each of `spaces` that a subnet uses. Raises SlimError as `run`."""
        check_part(subnet, self.shape)
        sizes = channels(subnet)
        kept = {space: torch.arange(size) for space, size in sizes.items()}
        for path, (layer, norm) in self._norms.items():
            if layer.is_in(sizes):
                key = layer.key(sizes)
                size = norm.sizes[key] if layer.out is None else sizes[layer.out]
                kept[path] = torch.arange(size) + norm.starts[key]
        return kept

    def _choose(self, subnet: Subnet) -> None:
        """Set every layer to the subnet's widths."""
        check_part(subnet, self.shape)
        sizes = channels(subnet)
        for (stage, index), block in self._blocks.items():
            block.runs = index in subnet.blocks[stage]
            if block.runs:
                position = subnet.blocks[stage].index(index)
                block.attending = attends(own_shape(subnet.shape), stage, position)
        for layer, conv in self._convs:
            if layer.out is not None:
                conv.used = sizes.get(layer.out, 0)
        for layer, norm in self._norms.values():
            if layer.is_in(sizes):
                norm.key = layer.key(sizes)

    def _make_elastic(self, path: str, layer: Layer) -> None:
        """Put layers that can run by their first channels in the place of plain ones."""
        plain = self.get_submodule(path)
        if isinstance(plain, ConvBN):
            self._make_elastic_conv(f"{path}.conv", layer, plain.conv)
            self._switch_norm(f"{path}.bn", layer, plain.bn)
        elif isinstance(plain, nn.Conv2d):
            self._make_elastic_conv(path, layer, plain)
        elif isinstance(plain, nn.BatchNorm2d):
            self._switch_norm(path, layer, plain)
        elif isinstance(plain, nn.Linear):
            linear = FirstInputs(plain.in_features, plain.out_features)
            linear.load_state_dict(plain.state_dict())
            self.set_submodule(path, linear)
        elif isinstance(plain, LayerScale):
            scales = FirstScales(len(plain.gamma))
            nn.init.constant_(scales.gamma, LAYER_SCALE_START)
            self.set_submodule(path, scales)

    def _make_elastic_conv(self, path: str, layer: Layer, plain: nn.Conv2d) -> None:
        kernel, stride, padding = cast(Any, (plain.kernel_size, plain.stride, plain.padding))
        conv = FirstChannels(
            plain.in_channels, plain.out_channels, kernel, stride, padding, groups=plain.groups
        )
        conv.used = plain.out_channels
        self._convs.append((layer, conv))
        self.set_submodule(path, conv)

    def _switch_norm(self, path: str, layer: Layer, plain: nn.BatchNorm2d) -> None:
        """A BatchNorm for each of the sizes that the spaces which settle it can have."""
        chosen = choices(self.shape, layer)
        sizes = {layer.key(c): c[layer.out] if layer.out else plain.num_features for c in chosen}
        norm = SwitchedNorm(sizes, plain)
        self._norms[path] = (layer, norm)
        self.set_submodule(path, norm)


def _draw(below: int) -> int:
    return int(torch.randint(below, ()))

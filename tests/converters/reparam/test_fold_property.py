"""Random small networks: whatever the rules do to them, the function stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fold_check import EXACT, fold, numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNELS = 4
SIZE = 5
DEPTH = 6


CONVOLVING = {
    "conv", "residual", "add in place", "two branches", "tee", "unlike branches", "long sum", "row",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One step on a (1, CHANNELS, SIZE, SIZE) map; only some fields matter to each kind."""

    kind: str
    kernel: int
    groups: int
    bias: bool
    padded: bool
    seed: int


LAYERS = st.builds(
    Layer,
    kind=st.sampled_from(
        [
            "conv", "conv", "batch norm", "batch norm", "scale", "number", "group norm",
            "layer norm", "relu", "relu in place", "residual", "add in place", "two branches",
            "tee", "pool mixer", "attention", "half scaled", "unlike branches", "long sum", "row",
            "pixels",
        ]
    ),
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip


class Step(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        pad = layer.kernel // 2
        self.fewer = nn.Conv2d(CHANNELS, CHANNELS, 1, groups=4 // layer.groups, bias=layer.bias)
        if layer.kind in CONVOLVING:
            make = lambda: nn.Conv2d(  # noqa: E731
                CHANNELS, CHANNELS, layer.kernel, padding=pad, groups=layer.groups, bias=layer.bias
            )
            self.one, self.two = make(), make()
            self.norm = nn.BatchNorm2d(CHANNELS) if layer.padded else nn.Identity()
        elif layer.kind == "batch norm":
            self.norm = nn.BatchNorm2d(CHANNELS)
        elif layer.kind == "group norm":
            self.norm = nn.GroupNorm(layer.groups, CHANNELS)
        elif layer.kind == "layer norm":
            self.norm = nn.LayerNorm(CHANNELS)
        elif layer.kind == "attention":
            self.qkv = nn.Conv2d(CHANNELS, 3 * CHANNELS, 1, bias=layer.bias)
            self.heads = layer.groups
        self.register_buffer("scale", numbers(1, CHANNELS, 1, 1, seed=layer.seed))

    def forward(self, x: Tensor) -> Tensor:
        match self.layer.kind:
            case "conv":
                return self.one(x)
            case "batch norm" | "group norm":
                return self.norm(x)
            case "layer norm":
                return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case "scale":
                return self.scale * x if self.layer.bias else x / self.scale
            case "number":
                return x * 0.7
            case "relu":
                return x.relu()
            case "relu in place":
                return (x + 0.1).relu_()
            case "residual":
                return x + self.norm(self.one(x)) * self.scale
            case "add in place":
                y = self.norm(self.one(x))
                y += x
                return y
            case "two branches":
                return self.norm(self.one(x) + self.two(x))
            case "unlike branches":
                return self.norm(self.fewer(x) - self.one(x))
            case "long sum":
                return x * self.scale - (self.norm(x) + self.fewer(x)) + (self.one(x) + x)
            case "row":
                return self.fewer(self.one(self.two(x) if self.layer.padded else x))
            case "pixels":
                pool = nn.functional.avg_pool2d if self.layer.padded else nn.functional.max_pool2d
                return self.fewer(pool(x, 1, self.layer.kernel - 1 or 1)) + x[:, :, :1, :1]
            case "tee":
                y = self.norm(x)
                return self.one(y) * self.two(y).sigmoid()
            case "pool mixer":
                return x + self.scale * (nn.functional.avg_pool2d(x, 3, 1, 1) - x)
            case "attention":
                return self._attend(x)
            case _:
                half = CHANNELS // 2
                return torch.cat([x[:, :half] * 0.3, x[:, half:]], 1)

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(1, self.heads, 3 * CHANNELS // self.heads, -1).transpose(2, 3)
        q, k, v = qkv.chunk(3, -1)
        scores = (q @ k.transpose(-2, -1)) * 0.6 if self.layer.padded else (q * 0.6) @ k.mT
        return (scores.softmax(-1) @ v).transpose(2, 3).reshape(x.shape)


class Net(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.steps = nn.Sequential(*map(Step, layers))
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head, self.head_dist = nn.Linear(CHANNELS, 3), nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        # The map is an output too, so nothing is lost in the mean; and so is x, so that there is a
        # spread to measure by where a chain of scales leaves little.
        y = self.steps(x.tanh())
        pooled = self.norm(y).mean((2, 3))
        logits = (self.head(pooled) + self.head_dist(pooled)) / 2
        return torch.cat([logits, y.flatten(1), x.flatten(1)], 1)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(LAYERS, min_size=2, max_size=DEPTH))
def test_folding_keeps_the_function(layers: list[Layer]) -> None:
    folded = fold(Net(layers), (CHANNELS, SIZE, SIZE))
    assert folded.error <= EXACT
    # The two heads behind one mean are one map, whatever came before them.
    assert folded.ops["linear"] == 1

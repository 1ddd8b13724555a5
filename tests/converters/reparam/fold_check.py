"""Fold a small module and compare with the module itself, both in float64."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from helpers import error_over_spread, randomise
from torch import Tensor, nn
from torch.fx import GraphModule

from converters.reparam import apply_rules

torch.set_num_threads(1)

INPUTS = 3
EXACT = 1e-10

BN_PREVIOUS = "batch norm into the linear map before it"
BN_NEXT = "batch norm into the linear maps after it"
NORM_AFFINE = "norm affine into the linear maps after it"
SCALE_PREVIOUS = "scale into the linear map before it"
SCALE_NEXT = "scale into the linear maps after it"
SCALE_PRODUCT = "attention scale into the query"
PARALLEL = "parallel linear maps into one"
RESIDUAL = "residual into the linear map"
CHAIN = "consecutive linear maps into one"
POOL_SCALE = "pool-mixer scale into a depthwise convolution"
CONSTANTS = "fold constants"
EQUAL = "equal constants into one"
NO_OPS = "remove no-ops"
OUT_OF_PLACE = "in-place ops out of place"


@dataclass
class Folded:
    """fired: rule -> times; ops: op -> nodes left; error: over the spread, in float64."""

    fired: dict[str, int]
    ops: Counter[str]
    error: float
    module: GraphModule

    @property
    def stored(self) -> int:
        """Floating-point numbers in parameters and buffers of the folded graph."""
        values = self.module.state_dict().values()
        return sum(value.numel() for value in values if value.is_floating_point())

    def times(self, rule: str) -> int:
        return self.fired.get(rule, 0)


class Lambda(nn.Module):
    """Modules by name, and a function over them: `Lambda(lambda m, x: m.conv(x), conv=...)`."""

    def __init__(
        self, function: Callable[[nn.Module, Tensor], Tensor], **members: nn.Module | Tensor
    ) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            elif isinstance(member, nn.Parameter):
                self.register_parameter(name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def numbers(*shape: int, low: float = 0.5, high: float = 1.5, seed: int = 5) -> Tensor:
    """Seeded values between low and high."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=draw) * (high - low) + low


@torch.no_grad()
def fold(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Folded:
    """Randomise, export at batch 1 and fold; `shape` is that of one input without the batch."""
    model = randomise(model.eval(), seed).double()
    draw = torch.Generator().manual_seed(seed + 1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_(0, 0.2, generator=draw)
            norm.running_var.uniform_(0.5, 1.5, generator=draw)
    inputs = torch.randn(INPUTS, *shape, dtype=torch.float64, generator=draw)
    return fold_as_is(model, inputs)


@torch.no_grad()
def fold_as_is(model: nn.Module, inputs: Tensor, runs: int = 2) -> Folded:
    """Export and fold a model with the weights and the mode it has.

    It runs over the inputs twice: a folded graph that writes into its own constants shows in the
    second run. A model that is meant to do so gets one run.
    """
    reference = copy.deepcopy(model)
    want = torch.cat([reference(x[None].clone()) for x in inputs])
    module = torch.export.export(model, (inputs[:1],)).module()
    fired = apply_rules(module)
    for _ in range(runs):
        got = torch.cat([module(x[None].clone()) for x in inputs])
    return Folded(fired, operators(module), error_over_spread(got, want), module)


def operators(module: GraphModule) -> Counter[str]:
    """How often each ATen op occurs in the graph, without overload names."""
    return Counter(
        node.target._schema.name.removeprefix("aten::")
        for node in module.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema")
    )


def assert_stays(folded: Folded, op: str, count: int, *rules: str) -> None:
    """None of `rules` fired, `op` is there `count` times, and the outputs are the same."""
    assert {rule: folded.times(rule) for rule in rules} == dict.fromkeys(rules, 0)
    assert folded.ops[op] == count
    assert folded.error <= EXACT

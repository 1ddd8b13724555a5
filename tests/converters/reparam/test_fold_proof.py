"""The proof: what it records, and that a wrong rule, weights or model cannot pass it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from fold_check import BN_PREVIOUS, Lambda, numbers
from helpers import randomise
from torch import Tensor, nn
from torch.fx import GraphModule

from converters.errors import ConvertError, ProofFailed
from converters.reparam import RULES, apply_rules, reparameterize
from converters.reparam.engine import rule
from converters.reparam.graph import FoldGraph, aten
from converters.reparam.linear_map import as_linear_map
from converters.reparam.proof import cast_graph


def small_net(seed: int = 0) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return randomise(model.eval(), seed)


@torch.no_grad()
def export(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> GraphModule:
    return torch.export.export(model, (torch.zeros(1, *shape, dtype=dtype),)).module()


def inputs(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def test_the_record() -> None:
    module, x = export(small_net(), 3, 6, 6), inputs(3, 3, 6, 6)
    folded = reparameterize(module, x)
    proof = folded.proof
    assert proof.rules[BN_PREVIOUS] == 1
    assert proof.params_before == 3 * 8 * 9 + 2 * 8 + 8 * 5 + 5
    assert proof.params_after == 3 * 8 * 9 + 8 + 8 * 5 + 5
    assert proof.macs_before == proof.macs_after == 3 * 8 * 9 * 36 + 8 * 5
    assert proof.nodes_before == 6
    assert proof.nodes_after == 5
    assert proof.inputs == 3
    assert proof.max_rel_float64 <= proof.gate_float64 == 1e-10
    assert proof.max_rel_float32 <= proof.gate_float32 == 1e-5


@torch.no_grad()
def test_the_outputs_and_the_untouched_original() -> None:
    model, x = small_net(), inputs(3, 3, 6, 6)
    module = export(model, 3, 6, 6)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    folded = reparameterize(module, x)
    assert all(torch.equal(kept[name], value) for name, value in module.state_dict().items())
    assert [n for n in module.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
    torch.testing.assert_close(folded.outputs, model(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(folded.folded_outputs, model(x), rtol=0, atol=1e-5)
    dtypes = {t.dtype for t in folded.module.state_dict().values()}
    assert dtypes == {torch.float32}


def test_a_weight_shared_by_two_layers_counts_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    model = randomise(model.eval(), 0)
    proof = reparameterize(export(model, 6), inputs(3, 6)).proof
    assert proof.params_before == sum(p.numel() for p in model.parameters())
    assert proof.params_after == proof.params_before


@pytest.fixture
def wrong_rule() -> Iterator[str]:
    """A rule that makes every linear map's weight larger by a ten-millionth, once."""
    name = "wrong, for the test"

    @rule(name)
    def enlarge(graph: FoldGraph) -> int:
        for node in graph.calls(aten.linear.default):
            linear = as_linear_map(graph, node)
            if linear is not None and "enlarged" not in node.meta:
                node.meta["enlarged"] = True
                linear.write(linear.weight * (1 + 1e-7), linear.bias)
                return 1
        return 0

    yield name
    del RULES[name]


def test_a_wrong_rule_fails(wrong_rule: str) -> None:
    with pytest.raises(ProofFailed, match=r"changed the function.*float64 \(gate 1e-10\)") as info:
        reparameterize(export(small_net(), 3, 6, 6), inputs(3, 3, 6, 6))
    assert info.value.exit_code == 1
    assert wrong_rule in RULES


def test_two_rules_of_one_name_are_refused(wrong_rule: str) -> None:
    with pytest.raises(ValueError, match=wrong_rule):
        rule(wrong_rule)(lambda _: 0)


def test_rules_that_never_rest_are_an_error() -> None:
    rule("restless")(lambda _: 1)
    try:
        with pytest.raises(ConvertError, match="did not come to rest"):
            apply_rules(export(small_net(), 3, 6, 6))
    finally:
        del RULES["restless"]


def test_a_constant_model_proves_nothing() -> None:
    model = small_net()
    with torch.no_grad():
        model[-1].weight.zero_()
    with pytest.raises(ProofFailed, match=r"same output for every input.*Are the weights loaded"):
        reparameterize(export(model, 3, 6, 6), inputs(3, 3, 6, 6))


def test_equal_inputs_prove_nothing() -> None:
    with pytest.raises(ProofFailed, match="same output for every input"):
        reparameterize(export(small_net(), 3, 6, 6), inputs(1, 3, 6, 6).repeat(3, 1, 1, 1))


def coarse(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A linear map and a norm behind arithmetic that float32 rounds much more than float64."""
    model = Lambda(
        lambda m, x: m.norm(m.fc(function(x))), fc=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)
    )
    return randomise(model.eval(), 0)


def test_a_model_that_float32_hardly_holds_gets_a_gate_of_its_own() -> None:
    """Exact folding may not fail because both sides of the comparison are rounded."""
    model = coarse(lambda x: (x + 1000) - 1000)
    proof = reparameterize(export(model, 6), inputs(3, 6)).proof
    assert proof.rules[BN_PREVIOUS] == 1
    assert 1e-5 < proof.gate_float32 <= 1e-4
    assert proof.max_rel_float64 <= 1e-10


@pytest.mark.parametrize(
    "function", [lambda x: (x + 1e5) - 1e5, lambda x: (x * 1e20).square().mul(1e-40)]
)
def test_a_model_that_float32_does_not_hold(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ProofFailed, match=r"float32 is too coarse.*Are the weights trained"):
        reparameterize(export(coarse(function), 6), inputs(3, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [0, 5])
def test_weights_that_are_not_finite(layer: int, value: float) -> None:
    model = small_net()
    with torch.no_grad():
        model[layer].weight.view(-1)[7] = value
    with pytest.raises(ProofFailed, match="not finite"):
        reparameterize(export(model, 3, 6, 6), inputs(3, 3, 6, 6))


def test_one_nan_statistic() -> None:
    model = small_net()
    model[1].running_var[2] = float("nan")
    with pytest.raises(ProofFailed, match="not finite"):
        reparameterize(export(model, 3, 6, 6), inputs(3, 3, 6, 6))


def test_a_model_that_writes_into_its_input() -> None:
    """The proof's pictures stay as they are, so that before and after see the same ones."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(3.0)
        return m.net(x)

    x = inputs(3, 3, 6, 6)
    kept = x.clone()
    folded = reparameterize(export(Lambda(forward, net=small_net()).eval(), 3, 6, 6), x)
    assert torch.equal(x, kept)
    assert folded.proof.max_rel_float64 <= 1e-10


def test_integer_pictures() -> None:
    model = Lambda(lambda m, x: m.net(x.to(torch.float32) / 255), net=small_net()).eval()
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 6, 6), dtype=torch.uint8, generator=draw)
    proof = reparameterize(export(model, 3, 6, 6, dtype=torch.uint8), pictures).proof
    assert proof.max_rel_float64 <= 1e-10


def test_float32_tensors_made_inside_follow_the_float64_run() -> None:
    """torch.eye(n) and x.to(float32) would meet float64 weights in a matrix product."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        mixing = torch.eye(6) + torch.zeros(6, 6).fill_(0.1)
        return m.fc((x.to(torch.float32) @ mixing) @ torch.ones(6, 6, dtype=torch.float32).triu())

    model = randomise(Lambda(forward, fc=nn.Linear(6, 4)).eval(), 0)
    proof = reparameterize(export(model, 6), inputs(3, 6)).proof
    assert proof.max_rel_float64 <= 1e-10


def test_a_graph_inside_the_graph_is_cast_as_well() -> None:
    """torch.export keeps an autocast block as a graph of its own, with checks of its types."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = m.norm(x.float())
        return m.fc(y)

    model = randomise(Lambda(forward, norm=nn.LayerNorm(6), fc=nn.Linear(6, 4)).eval(), 0)
    proof = reparameterize(export(model, 6), inputs(3, 6)).proof
    assert proof.max_rel_float64 <= 1e-10


@torch.no_grad()
def test_cast_there_and_back() -> None:
    model = Lambda(lambda m, x: F.linear(x, m.w) + torch.ones(4), w=numbers(4, 6)).eval()
    module, x = export(model, 6), inputs(1, 6)
    assert cast_graph(module, torch.float64)(x.double()).dtype == torch.float64
    back = cast_graph(module, torch.float32)(x)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, model(x))

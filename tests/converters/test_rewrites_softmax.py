"""Softmax on three dimensions: exact, and right on the engine that is wrong without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from converters.lower.base import TARGETS, Job, lower_to
from converters.lower.rewrites import apply_rewrites, rewritten
from converters.reparam.graph import shape_of
from runtime.sessions import open_session

NAME = "softmax on three dimensions"
HEADS, SIDE = 4, 7
SOFTMAXES = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default)


class Talk(nn.Module):
    """Two 1x1 convolutions over heads and what is asked for between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(HEADS, HEADS, 1), nn.Conv2d(HEADS, HEADS, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.between(self.before(x)))


class Plain(nn.Module):
    """Attention without talking heads: products, a bias, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.randn(HEADS, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        attn = torch.bmm(flat, flat.transpose(1, 2)).reshape(1, HEADS, SIDE, SIDE) * 0.5
        attn = (attn + self.bias).softmax(dim=-1)
        return torch.bmm(attn.flatten(0, 1), flat).reshape(x.shape)


WRONG = {
    "talking heads": lambda x: x.softmax(-1),
    "named dimension": lambda x: torch.softmax(x, dim=3),
    "arithmetic between": lambda x: (x * x - x).softmax(-1),
    "bias between": lambda x: (x + torch.linspace(-2, 2, x.numel()).reshape(x.shape)).softmax(-1),
    "activation between": lambda x: torch.relu(x).softmax(-1),
}
RIGHT = {
    "over heads": lambda x: x.softmax(1),
    "over rows": lambda x: x.softmax(2),
    "rank 3 already": lambda x: x.flatten(0, 1).softmax(-1).reshape(x.shape),
}


FORMS = WRONG | RIGHT


def inputs(count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1, HEADS, SIDE, SIDE, generator=draw) * 2 for _ in range(count)]


def made(between: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Talk(between).eval()


class Each(nn.Module):
    """Every form by itself, side by side: (1, heads, side, side) to (forms, heads, side, side)."""

    def __init__(self) -> None:
        super().__init__()
        self.forms = nn.ModuleList([*map(made, FORMS.values()), Plain()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([form(x) for form in self.forms])


def export(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module, (inputs(1)[0],))


def errors_on_engine(file: Path) -> dict[str, float]:
    """Form -> largest difference of ExecuTorch to torch over the spread of torch's outputs."""
    module = Each().eval()
    lower_to("executorch", export(module), Job(file, "fp32", SIDE, SIDE))
    session = open_session(file)
    got = np.stack([session.run(x.numpy()) for x in inputs()])
    session.close()
    with torch.no_grad():
        want = torch.stack([module(x) for x in inputs()]).numpy()
    error = np.abs(got - want).max(axis=(0, 2, 3, 4)) / np.ptp(want, axis=0).max(axis=(1, 2, 3))
    return dict(zip([*FORMS, "plain attention"], error.tolist(), strict=True))


def softmaxes(module: GraphModule) -> list[tuple[tuple[int, ...] | None, object]]:
    nodes = [n for n in module.graph.nodes if n.target in SOFTMAXES]
    return [(shape_of(n), n.args[1]) for n in nodes]


@pytest.mark.parametrize("form", WRONG)
@torch.no_grad()
def test_the_graph_stays_exact_with_a_softmax_of_rank_three(form: str) -> None:
    module = made(WRONG[form])
    for program in (export(module), export(module).run_decompositions({})):
        changed, fired = rewritten("executorch", program)
        assert fired == {NAME: 1}
        graph = changed.module()
        assert softmaxes(graph) == [((HEADS, SIDE, SIDE), -1)]
        for x in inputs():
            assert torch.equal(graph(x), program.module()(x))


@pytest.mark.parametrize("form", RIGHT)
def test_other_softmaxes_stay(form: str) -> None:
    program = export(made(RIGHT[form]))
    assert rewritten("executorch", program) == (program, {})


def test_plain_attention_stays() -> None:
    """Its input comes from a reshape: it is in plain order already, and right."""
    program = export(Plain().eval())
    assert rewritten("executorch", program) == (program, {})


def test_a_softmax_in_another_float_type_keeps_it() -> None:
    program = export(made(lambda x: x.softmax(-1, dtype=torch.float64).float()))
    module = program.module(check_guards=False)
    assert apply_rewrites("executorch", module) == {NAME: 1}
    x = inputs(1)[0]
    assert torch.equal(module(x), program.module()(x))
    (node,) = [n for n in module.graph.nodes if n.target in SOFTMAXES]
    assert torch.float64 in (*node.args, *node.kwargs.values())


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "executorch"])
def test_other_targets_keep_the_softmax(target: str) -> None:
    program = export(made(WRONG["talking heads"]))
    assert rewritten(target, program)[1] == {}


def test_executorch_is_right_with_the_rewrite(tmp_path: Path) -> None:
    errors = errors_on_engine(tmp_path / "model.pte")
    assert max(errors.values()) <= 1e-5, errors


def test_executorch_is_wrong_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's fault, and where it is not. Once this fails it is mended: the rewrite can go."""
    monkeypatch.setattr("converters.lower.executorch.rewritten", lambda _, program: (program, {}))
    errors = errors_on_engine(tmp_path / "model.pte")
    assert {form for form, error in errors.items() if error > 0.05} == set(WRONG), errors
    assert {form for form, error in errors.items() if error <= 1e-5} == set(errors) - set(WRONG)

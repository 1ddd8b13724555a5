"""Splits as slices: exact, and whole for ExecuTorch's delegate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.lower.base import TARGETS, Job, lower_to
from converters.lower.rewrites import rewritten
from runtime.sessions import open_session

NAME = "split as slices"
SIDE, WIDTH = 6, 10
SPLITS = ("split", "chunk")

FORMS: dict[str, Callable[[Tensor], tuple[Tensor, ...] | list[Tensor]]] = {
    "by sizes": lambda x: torch.split(x, [3, 3, 4], dim=1),
    "in equal parts with a rest": lambda x: torch.split(x, 4, dim=1),
    "in chunks": lambda x: torch.chunk(x, 3, dim=1),
    "from the back": lambda x: torch.split(x, [2, 4, 4], dim=-3),
    "rows": lambda x: torch.split(x, [1, 2, 3], dim=2),
    "last": lambda x: torch.split(x, [1, 2, 3], dim=-1),
}


class Split(nn.Module):
    """A convolution and a split, of which the first and the last piece are used."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, ...] | list[Tensor]]) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        first, _, last = self.split(self.before(x))
        return first.mean((2, 3), keepdim=True).sum(1, keepdim=True) * torch.relu(last)


class Partial(nn.Module):
    """What SHViT does: a part of the channels goes through a map, the others by it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.after = nn.Conv2d(WIDTH, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        part, rest = torch.split(self.before(x), [4, WIDTH - 4], dim=1)
        q, k = torch.split(self.part(part).flatten(2), [2, 2], dim=1)
        attn = torch.bmm(q.transpose(1, 2), k).softmax(-1)
        mixed = torch.bmm(part.flatten(2), attn).reshape(part.shape)
        return self.after(torch.relu(torch.cat([mixed, rest], dim=1)))


def inputs(count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, SIDE, SIDE, generator=draw) for _ in range(count)]


def export(module: nn.Module) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(module.eval(), (inputs(1)[0],))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_graph_stays_exact_without_a_split(form: str) -> None:
    for program in (export(Split(FORMS[form])), export(Split(FORMS[form])).run_decompositions({})):
        changed, fired = rewritten("executorch", program)
        assert fired == {NAME: 1}
        assert not any(word in str(n.target) for n in changed.graph.nodes for word in SPLITS)
        for x in inputs():
            assert torch.equal(changed.module()(x), program.module()(x))


def test_a_split_that_is_written_into_stays() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            x.split(1, dim=1)[0].mul_(3)
            return x

    program = export(Writes())
    assert rewritten("executorch", program)[1] == {}


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "executorch"])
def test_other_targets_keep_the_split(target: str) -> None:
    assert NAME not in rewritten(target, export(Split(FORMS["by sizes"])))[1]


def on_engine(module: nn.Module, file: Path) -> tuple[float, int]:
    """Largest error over the spread on ExecuTorch, and how many delegate calls there are."""
    lower_to("executorch", export(module), Job(file, "fp32", SIDE, SIDE))
    session = open_session(file)
    got = np.concatenate([session.run(x.numpy()) for x in inputs()])
    delegation = session.delegation()
    session.close()
    assert delegation is not None
    with torch.no_grad():
        want = torch.cat([module(x) for x in inputs()]).numpy()
    return float(np.abs(got - want).max() / np.ptp(want, axis=0).max()), delegation.partitions


def test_one_delegate_call_in_place_of_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Partial()
    error, calls = on_engine(module, tmp_path / "slices.pte")
    assert error <= 1e-5 and calls == 1
    monkeypatch.setattr("converters.lower.executorch.rewritten", lambda _, program: (program, {}))
    error, calls = on_engine(module, tmp_path / "splits.pte")
    assert error <= 1e-5 and calls == 3


def test_every_form_is_right_on_executorch(tmp_path: Path) -> None:
    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.forms = nn.ModuleList(map(Split, FORMS.values()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([form(x).flatten(1) for form in self.forms], dim=1)

    error, _ = on_engine(Each(), tmp_path / "model.pte")
    assert error <= 1e-5

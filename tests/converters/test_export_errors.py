"""Models that torch.export does not take: the message names the module, the line and a way out."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.diagnosis import place_of
from converters.errors import ConvertError
from converters.export import export_source
from converters.source import load_source

HERE = "test_export_errors.py"


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # branch
            return x
        return -x


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum() % 3)):  # count
            x = x * 2
        return x


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x[x > 0].mean()  # mask


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))  # numpy


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(Twice())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # scripted


def helper(x: Tensor) -> Tensor:
    return x if bool((x > 9).any()) else -x  # helper


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


class Net(nn.Module):
    """A stage of two blocks, the second of which cannot be exported."""

    def __init__(self, gate: nn.Module, shared: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), gate))
        self.again = self.stem if shared else None
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


KINDS = {
    "branch": (Branches, "choose with torch.where"),
    "count": (Counts, r"a number is read out of a tensor"),
    "numpy": (Numpy, "use the torch function of the same purpose"),
    "helper": (Helped, "choose with torch.where"),
}


def line_of(mark: str) -> int:
    """The line of this file that ends in the comment `mark`."""
    lines = open(__file__, encoding="utf-8").read().splitlines()  # noqa: PTH123, SIM115
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"  # {mark}"))
    return number


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mark", KINDS)
def test_module_line_and_advice(mark: str, shared: bool) -> None:
    """Also where a module has two names: torch then traces through proxies of all modules."""
    kind, advice = KINDS[mark]
    source = load_source(Net(kind(), shared), size=16)
    with pytest.raises(ConvertError) as info:
        export_source(source)
    text = str(info.value)
    assert text.startswith("torch.export cannot export 'Net': module stages.1.1 ")
    assert f"({kind.__name__}), " in text and f"{HERE}:{line_of(mark)}" in text, text
    assert re.search(rf"Try: .*{advice}", text), text
    assert len(text) < 1500 and "Traceback" not in text and "TORCH_LOGS" not in text
    assert info.value.exit_code == 2


@pytest.mark.parametrize("shared", [False, True])
def test_shapes_by_values(shared: bool) -> None:
    """torch exports them; no engine takes them."""
    with pytest.raises(ConvertError) as info:
        export_source(load_source(Net(Masks(), shared), size=16))
    text = str(info.value)
    assert text.startswith("'Net' has shapes that depend on values: module stages.1.1 (Masks), ")
    assert f"{HERE}:{line_of('mask')}" in text
    assert "aten.index.Tensor gives (u0)" in text and "use torch.where" in text


def test_a_scripted_part() -> None:
    with pytest.raises(ConvertError) as info:
        export_source(load_source(Net(Scripted()), size=16))
    assert ": module stages.1.1" in str(info.value) and HERE in str(info.value)
    assert "Try: 'stages.1.1.inner' is TorchScript" in str(info.value)


def test_a_run_that_fails_says_where_too() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 8, 7, 7)

    with pytest.raises(
        ConvertError, match=r"does not take pictures.*in module stages\.1\.1 \(Wide"
    ):
        load_source(Net(Wide()), size=16)


def test_an_error_without_a_model_in_it_has_no_place() -> None:
    try:
        raise ValueError("elsewhere")
    except ValueError as error:
        assert place_of(error, Net(Branches())) is None


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


class Record:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (Output, r"got Output with logits \(1, 5\), features \(1, 3, 16, 16\)"),
        (lambda y, x: {"logits": y, "loss": None}, r"got dict with logits \(1, 5\): return one"),
        (lambda y, x: (y, x), r"got tuple with 0 \(1, 5\), 1 \(1, 3, 16, 16\): return one tensor"),
        (lambda y, x: Record(y), r"got Record with logits \(1, 5\): return one tensor from"),
        (lambda y, x: "class 3", r"got str$"),
        (lambda y, x: y[0], r"got \(5,\)$"),
    ],
)
def test_outputs_in_containers(wrap, told: str) -> None:
    class Wrapped(Net):
        def forward(self, x: Tensor):
            return wrap(super().forward(x), x)

    with pytest.raises(ConvertError, match=told):
        load_source(Wrapped(nn.Identity()), size=16)

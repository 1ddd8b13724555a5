"""What `edgevit inspect` is told: layers and costs counted independently."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

from converters.errors import ConvertError
from converters.inspection import inspect_model


class Block(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class Staged(nn.Module):
    pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 16, 16)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.ModuleList([Block(8), Block(8)])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture(scope="module")
def found():
    return inspect_model(randomise(Staged(), seed=0))


def test_layers_by_hand(found):
    """Multiply-adds of 8x8 positions, parameters with biases; stages one by one, empty ones not."""
    conv = 8 * 8 * 3 * 3 * 8 * 8
    assert [(x.name, x.kind, x.params, x.macs) for x in found.layers] == [
        ("stem", "Conv2d", 3 * 8 * 9 + 8, 3 * 8 * 9 * 64),
        ("stages.0", "Block", 8 * 8 * 9 + 8 + 16, conv),
        ("stages.1", "Block", 8 * 8 * 9 + 8 + 16, conv),
        ("head", "Linear", 45, 40),
    ]


def test_layers_add_up_to_the_proof(found):
    assert sum(layer.params for layer in found.layers) == found.proof.params_before
    assert sum(layer.macs for layer in found.layers) == found.proof.macs_before


def test_folding_is_told_by_ops(found):
    assert found.ops_before["batch_norm"] == 2 and "batch_norm" not in found.ops_after
    assert found.ops_before["conv2d"] == found.ops_after["conv2d"] == 3
    assert found.proof.rules["batch norm into the linear map before it"] == 2
    assert sum(found.ops_after.values()) == found.proof.nodes_after
    assert (found.ref, found.input_shape, found.classes) == ("Staged", (1, 3, 16, 16), 5)
    assert found.trained and found.limits.keys() == {"coreml", "tflite", "executorch", "onnx"}


def test_another_size_changes_the_cost_not_the_parameters(found):
    larger = inspect_model(randomise(Staged(), seed=0), size=32)
    assert larger.input_shape == (1, 3, 32, 32)
    assert larger.proof.params_before == found.proof.params_before
    assert larger.layers[0].macs == 4 * found.layers[0].macs


def test_a_model_that_prints_does_not_print_here(capfd):
    class Loud(Staged):
        def forward(self, x: Tensor) -> Tensor:
            print("hello")  # noqa: T201
            return super().forward(x)

    inspect_model(randomise(Loud(), seed=0))
    assert "hello" not in capfd.readouterr().out


def test_a_size_that_the_model_does_not_take():
    class Fixed(Staged):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.zeros(1, 3, 16, 16))

    with pytest.raises(ConvertError, match="does not take pictures of shape"):
        inspect_model(Fixed(), size=20)

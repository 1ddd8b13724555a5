"""The registry: names, facts, construction and its errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.models import (
    ModelConfig,
    ModelError,
    create_model,
    list_models,
    model_config,
    register_model,
)

# Millions of parameters (training form, all heads) and GMACs: counted on the official code.
TABLE = {
    "efficientformer_l1": (12.290, 1.291),
    "efficientformer_l3": (31.406, 3.907),
    "efficientformer_l7": (82.229, 10.119),
    "shvit_s1": (6.331, 0.2413),
    "shvit_s2": (11.483, 0.3654),
    "shvit_s3": (14.245, 0.6006),
    "shvit_s4": (16.588, 0.9862),
}


def test_names_come_in_natural_order_and_match_patterns() -> None:
    names = list_models()
    assert [name for name in names if name in TABLE] == list(TABLE)
    assert list_models("shvit_*") == ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"]
    assert list_models("*_l[37]") == ["efficientformer_l3", "efficientformer_l7"]
    assert list_models("nothing*") == []


def test_numbers_in_names_order_as_numbers() -> None:
    from edgevit.models.registry import _natural

    assert sorted(["m10", "m9", "k2"], key=_natural) == ["k2", "m9", "m10"]


@pytest.mark.parametrize("name", list_models())
def test_parameters_and_macs_are_those_of_the_config(name: str) -> None:
    config = model_config(name)
    with torch.device("meta"):
        model = create_model(name)
        image = torch.empty(1, 3, config.input_size, config.input_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    params_m = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    macs_g = counter.get_total_flops() / 2e9
    assert round(params_m, 3) == config.params_m
    assert macs_g == pytest.approx(config.macs_g, abs=0.0005 if config.macs_g > 1 else 0.00005)
    if name in TABLE:
        assert (config.params_m, config.macs_g) == TABLE[name]


@pytest.mark.parametrize("name", list_models())
def test_the_next_side_that_divides_is_taken(name: str) -> None:
    """What `takes_size` and `size_multiple` promise to `--size`."""
    config = model_config(name)
    side = config.input_size + config.size_multiple
    with torch.device("meta"):
        model = create_model(name, 5, **({"input_size": side} if config.takes_size else {}))
        assert model(torch.empty(2, 3, side, side)).shape == (2, 5)


@pytest.mark.parametrize("name", TABLE)
def test_preprocessing_is_that_of_the_published_weights(name: str, timm) -> None:
    ours, theirs = model_config(name), timm.get_pretrained_cfg(name)
    assert theirs.input_size == (3, ours.input_size, ours.input_size)
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)


def test_published_figures_name_their_source() -> None:
    for config in map(model_config, list_models()):
        assert (config.top1 is None) == (config.top1_source is None)
        assert all(what and ms > 0 and source for what, ms, source in config.latencies)


def test_create_model_is_in_eval_mode_and_follows_the_seed() -> None:
    torch.manual_seed(3)
    first = create_model("shvit_s1", num_classes=7)
    torch.manual_seed(3)
    second = create_model("shvit_s1", num_classes=7)
    assert not any(module.training for module in first.modules())
    assert first(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
def test_one_class_is_enough(name: str) -> None:
    with torch.no_grad():
        assert create_model(name, num_classes=1)(torch.randn(1, 3, 224, 224)).shape == (1, 1)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        create_model("shvit_s9")
    assert str(caught.value) == (
        "unknown model 'shvit_s9'; did you mean shvit_s1, shvit_s2, shvit_s3? "
        "`edgevit models` lists all"
    )
    assert caught.value.exit_code == 2
    with pytest.raises(ModelError, match=r"did you mean efficientformer_l7, "):
        model_config("EfficientFormer-L7")
    with pytest.raises(ModelError) as caught:
        model_config("resnet50")
    assert str(caught.value) == "unknown model 'resnet50'; `edgevit models` lists all"


@pytest.mark.parametrize("count", [0, -3])
def test_fewer_than_one_class_is_refused(count: int) -> None:
    with pytest.raises(ModelError, match=f"expected at least 1 class, got {count}"):
        create_model("shvit_s1", num_classes=count)


def test_a_name_cannot_be_registered_twice() -> None:
    before = model_config("shvit_s1")
    config = ModelConfig("shvit_s1", "mine", 224, crop_pct=1.0, params_m=0, macs_g=0)
    with pytest.raises(ModelError, match="'shvit_s1' is registered twice"):
        register_model(config)(nn.Identity)
    assert model_config("shvit_s1") is before


def test_importing_the_models_needs_torch_only() -> None:
    code = (
        "import sys, edgevit.models; "
        "print([m for m in ('timm', 'safetensors', 'pydantic', 'runtime', 'converters') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

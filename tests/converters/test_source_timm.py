"""`timm:NAME`: its input as timm's own configuration and transform have it."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from helpers import pictures

from converters.errors import ConvertError
from converters.source import load_source

# Sizes, means and crops that are not ImageNet's usual ones; the small models of their families.
MODELS = ["test_vit", "test_efficientnet", "tf_efficientnet_b1.ns_jft_in1k", "levit_128s",
          "ghostnet_050", "efficientvit_m5", "mobilevit_xxs", "dla46_c"]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_input_is_that_of_timms_config(timm: ModuleType, name: str) -> None:
    from timm.data import resolve_model_data_config

    pre = load_source(f"timm:{name}", settle=False).preprocessing
    data = resolve_model_data_config(timm.create_model(name))
    assert (3, pre.height, pre.width) == data["input_size"]
    assert (pre.mean, pre.std) == (list(data["mean"]), list(data["std"]))
    assert (pre.crop_pct, pre.interpolation) == (data["crop_pct"], data["interpolation"])


def test_the_models_cover_unusual_inputs(timm: ModuleType) -> None:
    """The list above is worth something only while it holds other inputs than the usual one."""
    cfgs = [timm.get_pretrained_cfg(name) for name in MODELS]
    assert len({c.input_size for c in cfgs}) >= 3
    assert len({c.mean for c in cfgs}) >= 2 and len({c.crop_pct for c in cfgs}) >= 3
    assert {c.fixed_input_size for c in cfgs} == {True, False}
    assert len({c.interpolation for c in cfgs}) >= 2


def test_a_convolutional_model_takes_any_size(timm: ModuleType) -> None:
    assert timm
    source = load_source("timm:test_efficientnet", size=100, settle=False)
    assert (source.preprocessing.height, source.notes) == (100, ())
    with torch.no_grad():
        assert source.module(pictures(1, 100, seed=0)).shape == (1, 1000)


def test_a_fixed_model_is_built_for_the_size(timm: ModuleType) -> None:
    """A ViT's positions; timm's own model of that size is the reference."""
    own = timm.get_pretrained_cfg("test_vit").input_size[1]
    source = load_source("timm:test_vit", size=64, classes=7, settle=False)
    assert source.notes == (f"timm built it for 64x64 pictures, its own size is {own}x{own}",)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = timm.create_model("test_vit", img_size=64, num_classes=7).eval()
    x_BCHW = pictures(2, 64, seed=1)
    with torch.no_grad():
        assert torch.equal(source.module(x_BCHW), want(x_BCHW))
    assert load_source("timm:test_vit", size=own, settle=False).notes == ()


@pytest.mark.parametrize(
    ("ref", "more", "message"),
    [
        ("timm:no_such_net", {}, r"timm cannot build 'no_such_net': Unknown model"),
        ("timm:test_vit.r160_in2k", {}, r"timm cannot build 'test_vit\.r160_in2k': .*Invalid"),
        ("timm:", {}, r"timm cannot build ''"),
        ("timm:org/net", {}, r"timm cannot build 'org/net'"),
        ("timm:vit_small_patch14_dinov2", {}, r"has no classes, it gives features: --classes N"),
    ],
)
def test_what_timm_does_not_build(timm: ModuleType, ref: str, more: dict, message: str) -> None:
    assert timm
    with pytest.raises(ConvertError, match=message) as info:
        load_source(ref, **more)
    assert info.value.exit_code == 2


def test_other_channels_than_three(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **more: grey(make(name, in_chans=1, **more))
    )

    def grey(model: torch.nn.Module) -> torch.nn.Module:
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 160, 160)}
        return model

    with pytest.raises(ConvertError, match=r"takes 1 channels, expected 3 \(RGB\)"):
        load_source("timm:test_efficientnet")

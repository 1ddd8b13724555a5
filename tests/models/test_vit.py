"""ViT and DeiT beyond what every family is tested for: sizes, widths, heads, facts, targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import error_over_spread, pictures, randomise, timm_name
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgevit.models import ModelError, create_model, list_models, model_config
from edgevit.models.vit import VisionTransformer

NAMES = [name for name in list_models() if model_config(name).family == "vit"]
SHAPES = [(1, 3, 224, 224), (1, 3, 96, 128), (3, 96, 96), (1, 1, 96, 96)]


def test_the_zoo_has_them_all() -> None:
    sizes = ("tiny", "small", "base")
    deits = {f"deit_{size}{end}" for size in sizes for end in ("", "_distilled")}
    assert set(NAMES) == {f"vit_{size}" for size in (*sizes, "large")} | deits


@pytest.mark.parametrize("name", NAMES)
def test_params_and_macs_are_those_of_timm(name: str, timm) -> None:
    """timm's own attention, unfused: the flop counter does not see into a fused one everywhere."""
    config = model_config(name)
    assert config.takes_size and config.size_multiple == 16
    timm.layers.set_fused_attn(False)
    try:
        with torch.device("meta"):
            theirs = timm.create_model(timm_name(name)).eval()
            image = torch.empty(1, 3, 224, 224)
    finally:
        timm.layers.set_fused_attn(True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(image)
    assert config.params_m == round(sum(p.numel() for p in theirs.parameters()) / 1e6, 3)
    assert config.macs_g == pytest.approx(counter.get_total_flops() / 2e9, abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_that_of_the_published_weights(name: str, timm) -> None:
    ours, theirs = model_config(name), timm.get_pretrained_cfg(timm_name(name))
    assert theirs.input_size == (3, ours.input_size, ours.input_size)
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
    if name.startswith("vit"):
        assert ours.top1_source is not None
        assert ours.top1_source.split()[-1] == theirs.tag


@pytest.mark.parametrize("name", ["vit_tiny", "deit_tiny_distilled"])
@pytest.mark.parametrize("size", [16, 96, 240])
def test_other_sizes_equal_timm(name: str, size: int, timm) -> None:
    ours = randomise(create_model(name, 20, input_size=size), seed=size)
    theirs = timm.create_model(timm_name(name), num_classes=20, img_size=size).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = pictures(3, size, seed=8)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


@pytest.mark.parametrize(
    ("embed_dim", "num_heads", "head_dim", "mlp_dim"), [(40, 2, 24, 50), (64, 1, 16, 64)]
)
def test_widths_of_its_own_equal_timm(
    embed_dim: int, num_heads: int, head_dim: int, mlp_dim: int, timm
) -> None:
    """A slice of a model: fewer heads than the width has room for, a narrower MLP."""
    ours = VisionTransformer(
        embed_dim, 2, num_heads, 7, 64, head_dim=head_dim, mlp_dim=mlp_dim
    ).eval()
    theirs = timm.models.VisionTransformer(
        64, 16, embed_dim=embed_dim, depth=2, num_heads=1, mlp_ratio=mlp_dim / embed_dim,
        num_classes=7,
    ).eval()  # fmt: skip
    for block in theirs.blocks:
        block.attn = timm.layers.Attention(embed_dim, num_heads, head_dim, qkv_bias=True)
    theirs.load_state_dict(randomise(ours, seed=3).state_dict(), strict=True)
    images = pictures(3, 64, seed=9)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


def test_width_that_no_head_divides_is_refused() -> None:
    with pytest.raises(ModelError, match="embed_dim 100 does not divide by 3 heads: give head_dim"):
        VisionTransformer(100, 1, 3)


def test_training_distilled_equals_timm(timm) -> None:
    ours = randomise(create_model("deit_tiny_distilled", 20, input_size=64), seed=5).train()
    theirs = timm.create_model(timm_name("deit_tiny_distilled"), num_classes=20, img_size=64)
    theirs.train().set_distilled_training(True)
    theirs.load_state_dict(ours.state_dict())
    images = pictures(4, 64, seed=10)
    with torch.no_grad():
        label, teacher = ours(images)
        for got, want in zip((label, teacher), theirs(images), strict=True):
            assert error_over_spread(got, want) <= 1e-5
        assert error_over_spread(ours.eval()(images), (label + teacher) / 2) <= 1e-5
        assert (label - teacher).abs().max() > 0.1


@pytest.mark.parametrize("name", ["vit_tiny", "deit_tiny_distilled"])
def test_training_reaches_every_parameter(name: str) -> None:
    model = randomise(create_model(name, 5, input_size=32), seed=4).train()
    answer = model(torch.randn(2, 3, 32, 32))
    answers = answer if isinstance(answer, tuple) else (answer,)
    assert [tuple(a.shape) for a in answers] == [(2, 5)] * len(answers)
    sum(a.square().sum() for a in answers).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_initialisation_is_that_of_timm(timm) -> None:
    """Before training: spread of weights, tokens and biases, tensor by tensor."""
    name = "deit_tiny_distilled"
    torch.manual_seed(1)
    ours, theirs = create_model(name), timm.create_model(timm_name(name))
    for (key, got), want in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        std = want.std().item()
        assert got.std().item() == pytest.approx(std, rel=0.25, abs=1e-9), key
        assert abs(got.mean().item() - want.mean().item()) <= 0.5 * std + 1e-9, key


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(100, "96 or 112"), (15, "16"), (0, "16"), (-64, "16"), (225, "224 or 240")],
)
def test_a_side_that_does_not_divide_is_refused(size: int, nearest: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_model("vit_tiny", input_size=size)
    assert str(caught.value) == (
        "ViT takes images whose side is a multiple of 16 pixels, "
        f"got {size}; the nearest: {nearest}"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    model = create_model("vit_tiny", input_size=96)
    with pytest.raises(ModelError) as caught:
        model(torch.zeros(shape))
    assert "takes images of shape (B, 3, 96, 96)" in str(caught.value)
    assert f"got {shape}" in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny", "deit_tiny_distilled"])
def test_export_is_clean(name: str) -> None:
    """Nothing that a target leaves outside its delegate, where another form of it would go in."""
    model = randomise(create_model(name, 10, input_size=64), seed=7)
    images = pictures(2, 64, seed=12)
    exported = torch.export.export(model, (images,))
    with torch.no_grad():
        assert torch.equal(exported.module()(images), model(images))
    for program in (exported, exported.run_decompositions({})):
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        values = [node.meta["val"] for node in calls if isinstance(node.meta["val"], Tensor)]
        assert max(value.ndim for value in values) <= 4
        assert {value.dtype for value in values} == {torch.float32}
        targets = {str(node.target) for node in calls}
        outside = ("expand", "matmul", "split", "select", "_assert", "sym_")
        assert {t for t in targets if any(word in t for word in outside)} == set()


@pytest.mark.slow
def test_converts_to_every_target_and_verifies(tmp_path: Path) -> None:
    from converters.pipeline import ConvertOptions, convert, failed_targets

    manifest = convert("deit_tiny_distilled", tmp_path / "out", ConvertOptions(precision="fp32"))
    assert failed_targets(manifest) == {}
    for target in ("tflite", "executorch", "onnx"):
        check = manifest.artifacts[target].verification
        assert check.status == "passed"
        assert check.error_over_spread is not None and check.error_over_spread <= 1e-4
    assert (tmp_path / "out" / manifest.artifacts["coreml"].file).is_dir()


def test_modules_are_named_for_the_partitioner() -> None:
    """The attributes by which a block is cut: heads, their width, and the two linear pairs."""
    block = create_model("vit_tiny", input_size=32).get_submodule("blocks.11")
    assert (block.attn.num_heads, block.attn.head_dim) == (3, 64)
    assert isinstance(block.mlp.fc1, nn.Linear) and block.mlp.fc2.in_features == 768

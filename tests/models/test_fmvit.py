"""FMViT-style: sizes, what folding leaves, input sizes, training, conversion.

There is no code and no checkpoint to compare with, so the blocks are compared with what they say
they are, and the sizes with what is published.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import error_over_spread, network_file, pictures, randomise, settle_batch_norm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from converters.pipeline import convert, failed_targets
from converters.reparam import apply_rules
from edgevit.models import ModelError, create_model, list_models, model_config
from edgevit.models.fmvit import (
    CONV,
    FMB,
    MIX,
    RLMHSA,
    ConvBN,
    FMViTShape,
    MultiGroupConv,
)

# Parameters in millions and multiply-adds in 1e9 at 224x224, as the paper gives them.
PUBLISHED = {
    "fmvit_t": (2.0, 0.3),
    "fmvit_s": (6.4, 0.8),
    "fmvit_m": (12.8, 2.0),
    "fmvit_b": (24.3, 4.2),
    "fmvit_l": (35.3, 7.1),
}


def deployed(model: nn.Module) -> nn.Module:
    """Every multi-group convolution as its widest branch alone, every norm gone, every bias there.

    Of the same size as the folded form, not of the same values.
    """
    for name, child in model.named_children():
        if isinstance(child, MultiGroupConv):
            child = max(child.branches, key=lambda b: b.conv.weight.numel())  # noqa: PLW2901
        if isinstance(child, ConvBN):
            conv = child.conv
            conv.bias = nn.Parameter(torch.empty(conv.out_channels, device="meta"))
            setattr(model, name, conv)
        elif isinstance(child, nn.BatchNorm2d):
            setattr(model, name, nn.Identity())
        else:
            deployed(child)
    return model


def size_of(model: nn.Module, image: Tensor) -> tuple[int, int]:
    """Parameters and multiply-adds."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def test_the_family_is_there() -> None:
    assert set(list_models("fmvit_*")) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_folded_form_has_the_published_size(name: str) -> None:
    with torch.device("meta"):
        params, macs = size_of(deployed(create_model(name)), torch.empty(1, 3, 224, 224))
    assert params / 1e6 == pytest.approx(PUBLISHED[name][0], rel=0.05)
    assert macs / 1e9 == pytest.approx(PUBLISHED[name][1], rel=0.05)
    config = model_config(name)
    assert config.params_m > params / 1e6
    assert config.macs_g > macs / 1e9


@torch.no_grad()
def test_folding_gives_that_form() -> None:
    """One convolution for every multi-group convolution, no norm, the function the same."""
    images = pictures(3, 96, seed=1)
    model = settle_batch_norm(randomise(create_model("fmvit_t", 20), 0), images).double()
    images = images.double()
    want = model(images)
    module = torch.export.export(model, (images[:1],)).module()
    apply_rules(module)
    got = torch.cat([module(image[None]) for image in images])
    assert error_over_spread(got, want) <= 1e-10
    with torch.device("meta"):
        small = deployed(create_model("fmvit_t", 20))
        params, macs = size_of(small, torch.empty(1, 3, 96, 96))
    assert sum(p.numel() for p in module.state_dict().values()) == params
    assert size_of(module, images[:1])[1] == macs
    targets = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "batch_norm" in target]
    convolutions = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert targets.count("aten.conv2d.default") == len(convolutions)


@torch.no_grad()
def test_export_is_fit_for_the_edge() -> None:
    """No tensor of more than 4 dimensions, products of 3, no op that converters fear."""
    model = create_model("fmvit_t", 10)
    graph = torch.export.export(model, (torch.zeros(1, 3, 64, 96),)).module().graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert max(node.meta["val"].ndim for node in calls) <= 4
    targets = {str(node.target).removeprefix("aten.").split(".")[0] for node in calls}
    assert targets == {
        "conv2d", "batch_norm", "relu", "add", "reshape", "transpose", "bmm", "mul", "softmax",
        "cat", "mean", "flatten", "linear",
    }  # fmt: skip
    products = [node for node in calls if node.target is torch.ops.aten.bmm.default]
    assert {node.meta["val"].ndim for node in products} == {3}


def test_multi_group_convolution_by_hand() -> None:
    module = randomise(MultiGroupConv(8, 8), 0).eval()
    x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))

    def normed(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return y * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]

    dense, grouped = module.branches
    want = normed(torch.einsum("oi,bihw->bohw", dense.conv.weight[:, :, 0, 0], x), dense.bn)
    parts = [
        torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], part)
        for weight, part in zip(grouped.conv.weight.chunk(4), x.chunk(4, 1), strict=True)
    ]
    want = want + normed(torch.cat(parts, 1), grouped.bn) + normed(x, module.skip)
    with torch.no_grad():
        assert error_over_spread(module(x), want) <= 1e-5


@torch.no_grad()
def test_attention_equals_torchs_own() -> None:
    """Queries on the full map, keys and values on the shrunk one, heads in order of channels."""
    module = randomise(RLMHSA(64, shrink=2), 0).eval()
    x = torch.randn(2, 64, 4, 6, generator=torch.Generator().manual_seed(0))
    small = module.shrink(x)
    assert small.shape == (2, 64, 2, 3)
    q, k, v = (
        part.unflatten(1, (2, -1)).flatten(3).transpose(2, 3)
        for part in (module.q(x), module.k(small), module.v(small))
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
    assert error_over_spread(module(x), module.proj(mixed)) <= 1e-5


def test_the_mixing_block_blends_low_and_high() -> None:
    block = FMB(96, shrink=1)
    assert block.attention.heads == 1
    kernels = [group.mix.branches[0].conv.kernel_size for group in block.high]
    assert kernels == [(3, 3), (5, 5), (7, 7)]
    assert block.blend.branches[0].conv.in_channels == 32 + 3 * 20
    with torch.no_grad():
        assert block.eval()(torch.randn(2, 96, 3, 5)).shape == (2, 96, 3, 5)


@pytest.mark.parametrize("size", [(32, 32), (64, 160), (256, 224)])
def test_sides_that_are_multiples_of_32(size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert create_model("fmvit_t", 7)(torch.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    "shape", [(1, 3, 224, 200), (1, 3, 0, 64), (3, 224, 224), (1, 1, 224, 224)]
)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        create_model("fmvit_t")(torch.zeros(shape))
    assert "takes images of shape (B, 3, H, W) with H and W multiples of 32" in str(caught.value)
    assert f"got {shape}" in str(caught.value)


def test_every_parameter_learns() -> None:
    model = create_model("fmvit_t", 5).train()
    logits = model(pictures(4, 64, seed=2))
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
def test_every_target_takes_it(tmp_path: Path) -> None:
    # As T, with fewer of the blocks that are alike.
    kinds = ((CONV,), (CONV, MIX), (CONV, MIX), (CONV, MIX))
    shape = FMViTShape(16, (32, 64, 128, 192), kinds)
    manifest = convert(network_file(tmp_path, shape, 224), tmp_path / "out")
    assert set(manifest.artifacts) == {"coreml", "tflite", "executorch", "onnx"}
    assert failed_targets(manifest) == {}
    for target in ("tflite", "executorch", "onnx"):
        verification = manifest.artifacts[target].verification
        assert verification.status == "passed"
        assert verification.error_over_spread <= 1e-5
    assert manifest.artifacts["executorch"].delegation.partitions == 1

"""The model families against timm, and what timm does not have: heads, sizes, export."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import error_over_spread, pictures, randomise, settle_batch_norm, timm_name
from torch import Tensor, nn

from edgevit.models import ModelError, create_model, list_models, model_config

# Families that timm does not have, and why the comparison with it leaves them out.
NOT_IN_TIMM = {"fmvit": "the paper came without code or weights, and timm has no port of it"}
COMPARED = [name for name in list_models() if model_config(name).family not in NOT_IN_TIMM]
# Smaller ones at other widths, too large for a quick test: their names and shapes are compared.
LARGE = {"vit_base", "vit_large", "deit_base", "deit_base_distilled"}


def settled(name: str, seed: int, size: int | tuple[int, int], **kwargs: object) -> nn.Module:
    model = randomise(create_model(name, **kwargs), seed)
    return settle_batch_norm(model, pictures(4, size, seed + 100))


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in LARGE])
def test_equals_timm_with_the_same_weights(name: str, timm) -> None:
    size = model_config(name).input_size
    ours = settled(name, seed=1, size=size)
    theirs = timm.create_model(timm_name(name)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = pictures(2, size, seed=7)
    with torch.no_grad():
        got, want = ours(images), theirs(images)
    assert got.shape == (2, 1000)
    assert error_over_spread(got, want) <= 1e-5


@pytest.mark.parametrize("name", COMPARED)
def test_timm_state_dicts_load_strictly(name: str, timm) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name, 10), timm.create_model(timm_name(name), num_classes=10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    ours_p, theirs_p = ours.named_parameters(), theirs.named_parameters()
    assert [key for key, _ in ours_p] == [key for key, _ in theirs_p]


@pytest.mark.parametrize("size", [(224, 224), (160, 224), (97, 130)])
def test_shvit_takes_any_size(size: tuple[int, int], timm) -> None:
    ours = settled("shvit_s2", seed=2, size=size, num_classes=12)
    theirs = timm.create_model("shvit_s2", num_classes=12).eval()
    theirs.load_state_dict(ours.state_dict())
    images = pictures(3, size, seed=8)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


def pooled_and_heads(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the first head is given, and what each head answers, taken by hooks."""
    seen: list[Tensor] = []
    answers: list[Tensor] = []
    hooks = []
    for head in (model.head, model.head_dist):
        hooks.append(head.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
        hooks.append(head.register_forward_hook(lambda _, args, out: answers.append(out)))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen[0], answers


def test_shvit_distillation_head() -> None:
    model = settled("shvit_s1", seed=3, size=96, num_classes=9, distillation=True)
    plain = create_model("shvit_s1", num_classes=9)
    extra = set(model.state_dict()) - set(plain.state_dict())
    assert extra == {f"head_dist.{key}" for key in plain.head.state_dict()}
    images = pictures(2, 96, seed=9)
    pooled, answers = pooled_and_heads(model, images)
    by_hand = []
    for head in (model.head, model.head_dist):
        normed = (pooled - head.bn.running_mean) / (head.bn.running_var + head.bn.eps).sqrt()
        by_hand.append(F.linear(normed * head.bn.weight + head.bn.bias, head.l.weight, head.l.bias))
    for got, want in zip(answers, by_hand, strict=True):
        assert error_over_spread(got, want) <= 1e-5
    assert (by_hand[0] - by_hand[1]).abs().max() > 0.1
    with torch.no_grad():
        assert error_over_spread(model(images), (by_hand[0] + by_hand[1]) / 2) <= 1e-5


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("shvit_s1", {"distillation": True}, (4, 3, 64, 64)),
        ("efficientformer_l1", {}, (2, 3, 224, 224)),
    ],
)
def test_training_gives_both_heads(name: str, kwargs: dict[str, bool], shape: tuple) -> None:
    model = randomise(create_model(name, num_classes=5, **kwargs), seed=4).train()
    first, second = model(torch.randn(shape))
    assert first.shape == second.shape == (shape[0], 5)
    assert not torch.allclose(first, second)
    (first.sum() + second.sum()).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert without == []


def test_shvit_without_distillation_trains_on_one_head() -> None:
    model = create_model("shvit_s1", num_classes=5).train()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_efficientformer_training_equals_timm_distilled(timm) -> None:
    ours = randomise(create_model("efficientformer_l1", num_classes=20), seed=5).train()
    theirs = timm.create_model("efficientformer_l1", num_classes=20).train()
    theirs.load_state_dict(ours.state_dict())
    theirs.set_distilled_training(True)
    images = pictures(4, 224, seed=10)
    with torch.no_grad():
        for got, want in zip(ours(images), theirs(images), strict=True):
            assert error_over_spread(got, want) <= 1e-5


@pytest.mark.parametrize(
    "shape", [(1, 3, 256, 256), (1, 3, 208, 224), (3, 224, 224), (1, 1, 224, 224)]
)
def test_efficientformer_names_the_size_it_takes(shape: tuple[int, ...]) -> None:
    model = create_model("efficientformer_l1")
    with pytest.raises(ModelError) as caught:
        model(torch.zeros(shape))
    assert "takes images of shape (B, 3, 224, 224)" in str(caught.value)
    assert f"got {shape}" in str(caught.value)


def test_attention_biases_are_read_at_every_call() -> None:
    model = settled("efficientformer_l1", seed=6, size=224, num_classes=8)
    images = pictures(2, 224, seed=11)
    with torch.no_grad():
        before = model(images)
        mixer = model.stages[3].blocks[4].token_mixer
        mixer.attention_biases.copy_(mixer.attention_biases.flip(1))
        assert error_over_spread(model(images), before) > 1e-4


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
def test_export_is_clean(name: str) -> None:
    model = settled(name, seed=7, size=224, num_classes=10)
    images = pictures(2, 224, seed=12)
    exported = torch.export.export(model, (images,))
    with torch.no_grad():
        assert torch.equal(exported.module()(images), model(images))
    for program in (exported, exported.run_decompositions({})):
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        values = [node.meta["val"] for node in calls if isinstance(node.meta["val"], Tensor)]
        assert max(value.ndim for value in values) <= 4
        assert {value.dtype for value in values} == {torch.float32}
        targets = {str(node.target) for node in calls}
        assert not {target for target in targets if "expand" in target or "matmul" in target}
        assert not {target for target in targets if "_assert" in target or "sym_" in target}

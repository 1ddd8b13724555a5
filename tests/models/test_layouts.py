"""Checkpoints of timm's own modules, in the layouts of the papers' repositories; another head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import error_over_spread, pictures, randomise, settle_batch_norm, timm_name
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevit.models import Loaded, ModelError, create_model, load_weights
from edgevit.models.layouts import layouts

CLASSES = 11
AS_IN_THE_FILE = Loaded((), new_head=False)


def official_efficientformerv2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names to those of snap-research/EfficientFormer, written from its module tree."""
    stem = {
        ("conv1", "conv"): "0",
        ("conv1", "bn"): "1",
        ("conv2", "conv"): "3",
        ("conv2", "bn"): "4",
    }
    pair = {"conv": "0", "bn": "1"}
    official = {}

    def attention(parts: list[str]) -> list[str]:
        match parts:
            case ["q", "local", last]:
                return ["q", "local", "0", last]
            case ["q", "proj", ("conv" | "bn") as layer, last]:
                return ["q", "proj", pair[layer], last]
            case ["proj", ("conv" | "bn") as layer, last]:
                return ["proj", {"conv": "1", "bn": "2"}[layer], last]
            case [("stride_conv" | "q" | "k" | "v" | "v_local") as name, layer, last]:
                return [name, pair[layer], last]
        assert parts[0] in ("talking_head1", "talking_head2", "attention_biases"), parts
        return parts

    for name, value in weights.items():
        match name.split("."):
            case ["stem", layer, part, last]:
                parts = ["patch_embed", stem[layer, part], last]
            case ["stages", "3", "downsample", "conv", part, last]:
                parts = ["network", "5", part, last]
            case ["stages", "3", "downsample", "attn", *rest]:
                parts = ["network", "5", "attn", *attention(rest)]
            case ["stages", stage, "downsample", "conv", part, last]:
                between = str(2 * int(stage) - 1)
                parts = ["network", between, {"conv": "proj", "bn": "norm"}[part], last]
            case ["stages", stage, "blocks", block, *rest]:
                match rest:
                    case ["token_mixer", *inner]:
                        rest = ["token_mixer", *attention(inner)]
                    case ["mlp", layer, "conv", last]:
                        rest = ["mlp", layer, last]
                    case ["mlp", layer, "bn", last]:
                        norm = {"fc1": "norm1", "mid": "mid_norm", "fc2": "norm2"}[layer]
                        rest = ["mlp", norm, last]
                    case [("ls1" | "ls2") as scale, "gamma"]:
                        rest = [f"layer_scale_{scale[2]}"]
                parts = ["network", str(2 * int(stage)), block, *rest]
            case ["head_dist", last]:
                parts = ["dist_head", last]
            case parts:
                assert parts[0] in ("norm", "head"), name
        is_scale = parts[-1].startswith("layer_scale_")
        official[".".join(parts)] = value.reshape(-1, 1, 1) if is_scale else value
    assert len(official) == len(weights)
    return official


def first_seen_indices(side: int, step: int) -> Tensor:
    """The index table that the official code stores: offsets numbered as they are met."""
    keys = [(y, x) for y in range(side) for x in range(side)]
    seen: dict[tuple[int, int], int] = {}
    for qy, qx in keys:
        if qy % step == 0 and qx % step == 0:
            for ky, kx in keys:
                seen.setdefault((abs(qy - ky), abs(qx - kx)), len(seen))
    queries = [(y, x) for y, x in keys if y % step == 0 and x % step == 0]
    rows = [[seen[abs(qy - ky), abs(qx - kx)] for ky, kx in keys] for qy, qx in queries]
    return torch.tensor(rows)


def with_index_tables(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tables = {}
    for name, value in weights.items():
        if name.endswith("attention_biases"):
            downsample = name.startswith("network.5.")
            indices = first_seen_indices(round(value.shape[1] ** 0.5), 2 if downsample else 1)
            tables[name.replace("attention_biases", "attention_bias_idxs")] = indices
    assert tables
    return {**weights, **tables}


def same_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    one, other = ours.state_dict(), theirs.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("efficientformerv2_s0", lambda w: {"model": w, "epoch": 449, "scaler": {}}),
        ("efficientformerv2_s1", lambda w: {f"module.{key}": value for key, value in w.items()}),
        ("efficientformerv2_l", lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}),
    ],
)
@pytest.mark.parametrize("index_tables", [True, False])
def test_official_efficientformerv2(
    name: str, wrap, index_tables: bool, timm, tmp_path: Path
) -> None:
    theirs = randomise(timm.create_model(name, num_classes=CLASSES), seed=1)
    weights = official_efficientformerv2(theirs.state_dict())
    if index_tables:
        weights = with_index_tables(weights)
    torch.save(wrap(weights), tmp_path / "official.pth")
    ours = create_model(name, CLASSES)
    assert load_weights(ours, tmp_path / "official.pth", "efficientformerv2") == AS_IN_THE_FILE
    assert same_weights(ours, theirs)
    if name.endswith("s0"):
        settle_batch_norm(theirs, pictures(3, 224, seed=3))
        torch.save(official_efficientformerv2(theirs.state_dict()), tmp_path / "settled.pth")
        load_weights(ours, tmp_path / "settled.pth")
        images = pictures(2, 224, seed=2)
        with torch.no_grad():
            assert error_over_spread(ours(images), theirs(images)) <= 1e-5


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("patch_embed.3.weight", "stem.conv2.conv.weight"),
        ("network.3.norm.running_mean", "stages.2.downsample.conv.bn.running_mean"),
        (
            "network.4.5.token_mixer.stride_conv.1.bias",
            "stages.2.blocks.5.token_mixer.stride_conv.bn.bias",
        ),
        ("network.4.5.token_mixer.proj.1.weight", "stages.2.blocks.5.token_mixer.proj.conv.weight"),
        ("network.5.attn.q.proj.1.weight", "stages.3.downsample.attn.q.proj.bn.weight"),
        ("network.5.attn.q.local.0.bias", "stages.3.downsample.attn.q.local.bias"),
        ("network.6.3.mlp.mid_norm.bias", "stages.3.blocks.3.mlp.mid.bn.bias"),
        ("network.6.3.layer_scale_2", "stages.3.blocks.3.ls2.gamma"),
    ],
)
def test_known_pairs_of_names(official: str, ours: str) -> None:
    """Names of official EfficientFormerV2-S0, read from its module tree."""
    with torch.device("meta"):
        weights = create_model("efficientformerv2_s0").state_dict()
    inverse = official_efficientformerv2(weights)
    assert inverse[official].shape.numel() == weights[ours].numel()
    assert list(layouts({official: torch.zeros(1)}, "efficientformerv2").values())[1].keys() == {
        ours
    }


def test_an_index_table_that_the_model_does_not_store_still_orders_its_biases(
    tmp_path: Path,
) -> None:
    """Numbered otherwise than by offset, as first-seen numbering could have come out."""
    source = randomise(create_model("efficientformerv2_s0", CLASSES), seed=1)
    weights = with_index_tables(official_efficientformerv2(source.state_dict()))
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith("attention_biases")]:
        order = torch.randperm(weights[name].shape[1], generator=generator)
        indices = name.replace("attention_biases", "attention_bias_idxs")
        weights[name] = weights[name][:, order]
        weights[indices] = order.argsort()[weights[indices]]
    torch.save(weights, tmp_path / "shuffled.pth")
    target = create_model("efficientformerv2_s0", CLASSES)
    assert load_weights(target, tmp_path / "shuffled.pth") == AS_IN_THE_FILE
    assert same_weights(target, source)


@pytest.mark.parametrize("name", ["vit_tiny", "deit_tiny", "deit_tiny_distilled"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "optimizer": {}, "lr_scheduler": {}, "epoch": 299, "model_ema": w},
        lambda w: {"state_dict": {f"module.{name}": value for name, value in w.items()}},
    ],
)
def test_vit_and_deit(name: str, wrap, timm, tmp_path: Path) -> None:
    """facebookresearch/deit has timm's names; what is around them differs."""
    theirs = randomise(timm.create_model(timm_name(name), num_classes=CLASSES), seed=2).eval()
    torch.save(wrap(theirs.state_dict()), tmp_path / "deit.pth")
    ours = create_model(name, CLASSES)
    assert load_weights(ours, tmp_path / "deit.pth", "vit") == AS_IN_THE_FILE
    assert same_weights(ours, theirs)
    images = pictures(2, 224, seed=2)
    with torch.no_grad():
        assert error_over_spread(ours(images), theirs(images)) <= 1e-5


def refusal(model: nn.Module, path: Path, **kwargs: bool) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, path, **kwargs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value)


def test_a_teachers_head_that_the_model_lacks_names_the_model_that_has_it(tmp_path: Path) -> None:
    torch.save(create_model("deit_tiny_distilled", 5).state_dict(), tmp_path / "both.pth")
    lines = refusal(create_model("deit_tiny", 5), tmp_path / "both.pth").splitlines()
    assert lines[1:] == [
        "  3 unexpected: dist_token, head_dist.weight, head_dist.bias",
        "  1 mis-shaped: pos_embed (expected (1, 197, 192), got (1, 198, 192))",
        "  The file has a distillation head (head_dist), the model has none",
        "  Weights of another model? The file looks like deit_tiny_distilled (timm layout)",
    ]


def test_a_teachers_head_that_the_file_lacks_is_listed(tmp_path: Path) -> None:
    torch.save(create_model("deit_tiny").state_dict(), tmp_path / "one.pth")
    lines = refusal(create_model("deit_tiny_distilled"), tmp_path / "one.pth").splitlines()
    assert lines[1:] == [
        "  3 missing: dist_token, head_dist.weight, head_dist.bias",
        "  1 mis-shaped: pos_embed (expected (1, 198, 192), got (1, 197, 192))",
        "  The model has a distillation head (head_dist), the file has none",
        "  Weights of another model? The file looks like deit_tiny or vit_tiny (timm layout)",
    ]
    weights = create_model("efficientformerv2_s0").state_dict()
    without = {key: value for key, value in weights.items() if not key.startswith("head_dist")}
    torch.save(without, tmp_path / "one.pth")
    message = refusal(create_model("efficientformerv2_s0"), tmp_path / "one.pth")
    assert "2 missing: head_dist.weight, head_dist.bias\n" in message
    assert message.endswith("The model has a distillation head (head_dist), the file has none")


# Another number of classes.


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit_tiny", "head"),
        ("shvit_s1", "head"),
        ("deit_tiny_distilled", "head and head_dist"),
        ("efficientformer_l1", "head and head_dist"),
        ("efficientformerv2_s0", "head and head_dist"),
    ],
)
def test_a_new_head_is_the_models_own(name: str, heads: str, tmp_path: Path) -> None:
    source, target = (randomise(create_model(name, n), seed=n) for n in (7, 10))
    own = {key: value.clone() for key, value in target.state_dict().items()}
    save_file(source.state_dict(), tmp_path / "seven.safetensors")
    assert refusal(target, tmp_path / "seven.safetensors").endswith(
        "The file has 7 classes, the model 10: `--classes 7` sets the count"
    )
    loaded = load_weights(target, tmp_path / "seven.safetensors", new_head=True)
    note = f"{heads} re-initialised: the file has 7 classes, the model 10"
    assert loaded == Loaded((note,), new_head=True)
    file = source.state_dict()
    for key, value in target.state_dict().items():
        kept = value.shape != file[key].shape
        assert kept == (
            key.startswith("head") and key.endswith(("weight", "bias")) and len(value) == 10
        )
        assert torch.equal(value, own[key] if kept else file[key]), key


def test_a_new_head_of_as_many_classes_is_the_files(tmp_path: Path) -> None:
    source, target = (randomise(create_model("vit_tiny", 7, input_size=32), seed=s) for s in (1, 2))
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    assert load_weights(target, tmp_path / "seven.pth", new_head=True) == AS_IN_THE_FILE
    assert same_weights(target, source)


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("head.weight", (7, 100), "head.weight (expected (10, 192), got (7, 100))"),
        ("head.weight", (7, 192, 1), "head.weight (expected (10, 192), got (7, 192, 1))"),
        ("norm.weight", (100,), "norm.weight (expected (192,), got (100,))"),
        ("head.bias", None, "1 missing: head.bias"),
    ],
)
def test_a_new_head_forgives_nothing_else(
    key: str, shape: tuple[int, ...] | None, says: str, tmp_path: Path
) -> None:
    weights = create_model("vit_tiny", 7, input_size=32).state_dict()
    weights[key] = torch.zeros(shape or ())
    if shape is None:
        del weights[key]
    torch.save(weights, tmp_path / "odd.pth")
    target = create_model("vit_tiny", 10, input_size=32)
    assert says in refusal(target, tmp_path / "odd.pth", new_head=True)

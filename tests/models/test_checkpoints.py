"""Checkpoint files: layouts, wrappers, and every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import pictures, randomise
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevit.models import ModelError, create_model, list_models, load_weights, model_config
from edgevit.models.efficientformer import EfficientFormer, EfficientFormerShape

IDXS = "attention_bias_idxs"


def make(name: str = "shvit_s1", seed: int = 1, classes: int = 11, **kwargs: bool) -> nn.Module:
    return randomise(create_model(name, num_classes=classes, **kwargs), seed)


def official_efficientformer(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of snap-research/EfficientFormer, written from its module tree."""
    stem = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
    downsample = {"conv": "proj", "norm": "norm"}
    official = {}
    for name, value in weights.items():
        match name.split("."):
            case ["stem", layer, *rest]:
                parts = ["patch_embed", stem[layer], *rest]
            case ["stages", stage, "downsample", layer, *rest]:
                parts = ["network", str(2 * int(stage) - 1), downsample[layer], *rest]
            case ["stages", stage, "blocks", block, ("ls1" | "ls2") as scale, "gamma"]:
                parts = ["network", str(2 * int(stage)), block, f"layer_scale_{scale[2]}"]
            case ["stages", stage, "blocks", block, *rest]:
                parts = ["network", str(2 * int(stage)), block, *rest]
            case ["head_dist", last]:
                parts = ["dist_head", last]
            case parts:
                assert parts[0] in ("norm", "head"), name
        official[".".join(parts)] = value
    return official


def official_shvit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of ysj9909/SHViT, written from its module tree."""
    downsample = (["0", "0"], ["0", "1"], ["1"], ["2", "0"], ["2", "1"])
    official = {}
    for name, value in weights.items():
        match name.split("."):
            case ["stages", stage, "downsample", part, *rest]:
                parts = [f"blocks{int(stage) + 1}", *downsample[int(part)], *rest]
            case ["stages", stage, "blocks", block, *rest]:
                first = 0 if stage == "0" else 3
                parts = [f"blocks{int(stage) + 1}", str(int(block) + first), *rest]
            case parts:
                assert parts[0] in ("patch_embed", "head"), name
        official[".".join(parts)] = value
    return official


OFFICIAL = {"efficientformer": official_efficientformer, "shvit": official_shvit}
# L3 and L7 have a test of their own at full depth and less width, which is much faster.
NAMES = ["efficientformer_l1", *list_models("shvit_*")]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", NAMES)
def test_official_layout(name: str, tmp_path: Path) -> None:
    family = model_config(name).family
    source = make(name, seed=1)
    weights = OFFICIAL[family](source.state_dict())
    assert set(weights) != set(source.state_dict())
    torch.save({"model": weights, "epoch": 299}, tmp_path / "official.pth")
    for hint in (None, family):
        target = create_model(name, num_classes=11)
        load_weights(target, tmp_path / "official.pth", family=hint)
        assert_same_weights(target, source)
    image = pictures(1, model_config(name).input_size, seed=2)
    with torch.no_grad():
        assert torch.equal(target(image), source(image))


@pytest.mark.parametrize(
    ("name", "official", "ours"),
    [
        (
            "efficientformer_l1",
            "network.6.4.token_mixer.qkv.weight",
            "stages.3.blocks.4.token_mixer.qkv.weight",
        ),
        ("efficientformer_l3", "network.6.6.layer_scale_2", "stages.3.blocks.6.ls2.gamma"),
        ("efficientformer_l7", "network.6.1.norm1.bias", "stages.3.blocks.1.norm1.bias"),
        ("efficientformer_l7", "network.5.proj.bias", "stages.3.downsample.conv.bias"),
        ("shvit_s1", "blocks2.1.se.fc1.weight", "stages.1.downsample.2.se.fc1.weight"),
        ("shvit_s2", "blocks3.2.1.m.pw2.bn.bias", "stages.2.downsample.4.m.pw2.bn.bias"),
        (
            "shvit_s4",
            "blocks2.9.mixer.m.proj.1.c.weight",
            "stages.1.blocks.6.mixer.m.proj.1.c.weight",
        ),
    ],
)
def test_known_pairs_of_names(name: str, official: str, ours: str) -> None:
    """Pins the inverse maps of this file to names that were seen in the official modules."""
    with torch.device("meta"):
        weights = create_model(name).state_dict()
    assert OFFICIAL[model_config(name).family](weights)[official] is weights[ours]


@pytest.mark.parametrize(
    ("depths", "attention_depth"), [((4, 4, 12, 6), 4), ((6, 6, 18, 8), 8)], ids=["l3", "l7"]
)
def test_official_layout_at_full_depth(
    depths: tuple[int, int, int, int], attention_depth: int, tmp_path: Path
) -> None:
    """L3 and L7 but narrow: two-digit block numbers, and a stage 4 that starts by flattening."""
    shape = EfficientFormerShape((8, 16, 24, 32), depths, (0, 0, 0, attention_depth))
    source, target = randomise(EfficientFormer(shape), 3).eval(), EfficientFormer(shape).eval()
    weights = official_efficientformer(source.state_dict())
    torch.save(weights, tmp_path / "narrow.pt")
    load_weights(target, tmp_path / "narrow.pt")
    assert_same_weights(target, source)


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".SafeTensors"])
def test_timm_layout(name: str, suffix: str, timm, tmp_path: Path) -> None:
    source = randomise(timm.create_model(name, num_classes=11), seed=4).eval()
    path = tmp_path / f"timm{suffix}"
    save = save_file if suffix.lower() == ".safetensors" else torch.save
    save(source.state_dict(), path)
    target = create_model(name, num_classes=11)
    load_weights(target, str(path))
    assert_same_weights(target, source)


@pytest.mark.parametrize("layout", ["timm", "official"])
def test_bias_index_tables_may_be_there_or_not(layout: str, tmp_path: Path) -> None:
    source, target = make("efficientformer_l1"), create_model("efficientformer_l1", num_classes=11)
    weights = source.state_dict()
    if layout == "official":
        weights = official_efficientformer(weights)
    without = {name: value for name, value in weights.items() if not name.endswith(IDXS)}
    assert len(without) == len(weights) - 1
    torch.save(without, tmp_path / "without.pth")
    load_weights(target, tmp_path / "without.pth")
    assert_same_weights(target, source)


def test_an_index_table_in_the_file_goes_with_its_biases(tmp_path: Path) -> None:
    """Biases stored in another order are right with the table that was stored beside them."""
    source, target = make("efficientformer_l1"), create_model("efficientformer_l1", num_classes=11)
    weights = dict(source.state_dict())
    prefix = "stages.3.blocks.4.token_mixer."
    order = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    weights[prefix + "attention_biases"] = weights[prefix + "attention_biases"][:, order]
    weights[prefix + IDXS] = order.argsort()[weights[prefix + IDXS]]
    torch.save(weights, tmp_path / "permuted.pth")
    load_weights(target, tmp_path / "permuted.pth")
    image = pictures(1, 224, seed=5)
    with torch.no_grad():
        assert torch.equal(target(image), source(image))


def test_a_table_that_the_model_does_not_store_is_dropped(tmp_path: Path) -> None:
    source, target = make(), create_model("shvit_s1", num_classes=11)
    weights = {**source.state_dict(), f"stages.1.{IDXS}": torch.zeros(4, 4, dtype=torch.long)}
    torch.save(weights, tmp_path / "extra.pth")
    load_weights(target, tmp_path / "extra.pth")
    assert_same_weights(target, source)


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3},
        lambda w: {"state_dict": w, "arch": "shvit_s1", "best": 71.5},
        lambda w: {"model_ema": w},
        lambda w: {"module": w},
        lambda w: {"model": {"state_dict": prefixed(w, "module.")}},
        lambda w: {"model": w, "model_ema": prefixed(w, "other.")},
        lambda w: {"model": {}, "state_dict": w},
        lambda w: prefixed(w, "module."),
        lambda w: prefixed(w, "module.module."),
        lambda w: {"state_dict": OrderedDict(w), "args": argparse.Namespace(lr=1e-3, name="a")},
    ],
)
def test_wrappers(wrap, tmp_path: Path) -> None:
    source, target = make(), create_model("shvit_s1", num_classes=11)
    torch.save(wrap(official_shvit(source.state_dict())), tmp_path / "wrapped.pth")
    load_weights(target, tmp_path / "wrapped.pth")
    assert_same_weights(target, source)


def test_distillation_head_loads(tmp_path: Path) -> None:
    source = make(distillation=True)
    torch.save(source.state_dict(), tmp_path / "both.pth")
    target = create_model("shvit_s1", num_classes=11, distillation=True)
    load_weights(target, tmp_path / "both.pth")
    assert_same_weights(target, source)
    message = refusal(create_model("shvit_s1", num_classes=11), tmp_path / "both.pth")
    assert "7 unexpected: head_dist.bn.weight" in message


def test_weights_after_eval_and_a_forward_take_effect(tmp_path: Path) -> None:
    """The official code and timm keep a gathered bias that goes stale here."""
    source, target = make("efficientformer_l1"), make("efficientformer_l1", seed=9)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    image = pictures(1, 224, seed=6)
    with torch.no_grad():
        target(image)
        load_weights(target, tmp_path / "weights.pth")
        assert torch.equal(target(image), source(image))


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    source, target = make(), create_model("shvit_s1", num_classes=11)
    torch.save(source.half().state_dict(), tmp_path / "half.pth")
    load_weights(target, tmp_path / "half.pth")
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}
    assert_same_weights(target, source.float())


# What is wrong with a file. Each test reads the message and sees that the model stayed as it was.


def refusal(model: nn.Module, path: Path, **kwargs: str) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, path, **kwargs)
    assert [
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    ] == []
    return str(caught.value)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make(seed=20)


def test_missing_unexpected_and_misshaped_are_all_listed(model: nn.Module, tmp_path: Path) -> None:
    weights = dict(model.state_dict())
    del weights["patch_embed.0.bn.bias"]
    weights["extra.weight"] = torch.zeros(2)
    weights["patch_embed.2.c.weight"] = torch.zeros(32, 16, 5, 5)
    for number in range(10):
        weights[f"more.{number}"] = torch.zeros(1)
    torch.save(weights, tmp_path / "odd.pth")
    lines = refusal(model, tmp_path / "odd.pth").splitlines()
    assert lines == [
        f"{tmp_path / 'odd.pth'} does not fit the model; nothing was loaded",
        "  1 missing: patch_embed.0.bn.bias",
        "  11 unexpected: extra.weight, more.0, more.1, more.2, more.3, more.4, more.5, more.6, "
        "and 3 more",
        "  1 mis-shaped: patch_embed.2.c.weight (expected (32, 16, 3, 3), got (32, 16, 5, 5))",
    ]


@pytest.mark.parametrize("name", ["shvit_s1", "efficientformer_l1"])
def test_another_number_of_classes_names_the_flag(name: str, tmp_path: Path) -> None:
    source = make(name, classes=7)
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    target = make(name, classes=11)
    message = refusal(target, tmp_path / "seven.pth")
    assert message.endswith("The file has 7 classes, the model 11: `--classes 7` sets the count")
    assert "another model" not in message


@pytest.mark.parametrize(
    ("source", "target", "layout"),
    [
        ("efficientformer_l1", "shvit_s1", "timm"),
        ("efficientformer_l3", "efficientformer_l1", "official efficientformer"),
        ("shvit_s2", "shvit_s1", "timm"),
        ("shvit_s3", "efficientformer_l1", "official shvit"),
    ],
)
def test_weights_of_another_model_are_named(
    source: str, target: str, layout: str, tmp_path: Path
) -> None:
    weights = make(source, classes=5).state_dict()
    if layout != "timm":
        weights = OFFICIAL[model_config(source).family](weights)
    torch.save(weights, tmp_path / "other.pth")
    message = refusal(make(target), tmp_path / "other.pth")
    assert message.endswith(
        f"Weights of another model? The file looks like {source} ({layout} layout)"
    )


@pytest.mark.parametrize("shape", [(), (11,), (11, 1), (7, 300)])
def test_a_head_of_another_kind_gets_no_flag(
    shape: tuple[int, ...], model: nn.Module, tmp_path: Path
) -> None:
    torch.save({**model.state_dict(), "head.l.weight": torch.zeros(shape)}, tmp_path / "odd.pth")
    message = refusal(model, tmp_path / "odd.pth")
    assert message.endswith(f"1 mis-shaped: head.l.weight (expected (11, 320), got {shape})")


def test_weights_of_no_zoo_model(model: nn.Module, tmp_path: Path) -> None:
    torch.save(nn.LSTM(8, 8, 2).state_dict(), tmp_path / "other.pth")
    message = refusal(model, tmp_path / "other.pth")
    assert message.endswith("another model? The file looks like no model of the zoo")


def test_a_family_limits_the_layouts(tmp_path: Path) -> None:
    source = make()
    torch.save(official_shvit(source.state_dict()), tmp_path / "official.pth")
    target = make(seed=2)
    assert "missing: stages.0.blocks" in refusal(
        target, tmp_path / "official.pth", family="efficientformer"
    )
    message = refusal(target, tmp_path / "official.pth", family="shvitt")
    assert message.startswith("unknown model family 'shvitt'; expected shvit")


def test_two_tensors_for_one_name_are_not_merged(tmp_path: Path) -> None:
    source = make("efficientformer_l1")
    weights = official_efficientformer(source.state_dict())
    weights["head_dist.weight"] = torch.zeros(11, 448)
    torch.save(weights, tmp_path / "twice.pth")
    assert "unexpected" in refusal(make("efficientformer_l1", seed=2), tmp_path / "twice.pth")


class Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, (os.environ["EVIL_FOLDER"],))


@pytest.mark.parametrize("inside", [lambda evil: evil, lambda evil: {"model": {"a": evil}}])
def test_code_in_a_file_is_refused_and_not_run(
    inside, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "made"))
    torch.save(inside(Evil()), tmp_path / "evil.pth")
    message = refusal(model, tmp_path / "evil.pth")
    assert "evil.pth is refused: the file wants to run code (posix.mkdir)" in message
    assert "torch.save(model.state_dict(), ...)" in message
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "made").exists(), "the file would have run its code elsewhere"


def test_a_pickled_module_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "module.pt")
    message = refusal(model, tmp_path / "module.pt")
    assert "wants to run code (edgevit.models.shvit.SHViT)" in message


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("zip.pth", torch.save, "torch.save"),
        ("legacy.pt", partial(torch.save, _use_new_zipfile_serialization=False), "torch.save"),
        ("cut.safetensors", save_file, "safetensors"),
    ],
)
def test_truncated_files(name: str, write, kind: str, tmp_path: Path) -> None:
    """Cut at many places: torch alone raises OSError, KeyError and others, by the place."""
    model, path = nn.Linear(30, 20), tmp_path / name
    write(model.state_dict(), path)
    load_weights(model, path)
    data = path.read_bytes()
    for length in range(1, len(data), len(data) // 60):
        path.write_bytes(data[:length])
        message = refusal(model, path)
        if "the file wants to run code" not in message:  # a cut inside the name of a known type
            assert message.startswith(f"{path} is no readable {kind} file (")
            assert message.endswith("or of another kind; download or save it again")
        assert len(message) - len(str(path)) < 300
        assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<!DOCTYPE html><html>404</html>", "page.pth"),
        (b"hello world, this is no checkpoint", "text.pt"),
        (bytes(range(256)) * 20, "bytes.pth"),
        (pickle.dumps({"a": [1, 2]}, protocol=0), "pickle.pth"),
        (b"hello world, this is no checkpoint", "text.safetensors"),
        (b"abc", "short.safetensors"),
    ],
)
def test_files_of_another_kind(content: bytes, name: str, model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(model, tmp_path / name)
    assert f"{name} is no readable" in message
    assert "weights_only" not in message
    assert len(message) < 400


def test_files_that_are_not_there(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "gone.pth"
    assert refusal(model, path) == f"{path} does not exist: give the path of a checkpoint file"
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    assert refusal(model, folder) == f"{folder} cannot be read: Is a directory"
    long = tmp_path / f"{'n' * 300}.pth"
    assert refusal(model, long) == f"{long} cannot be read: File name too long"


@pytest.mark.parametrize("name", ["empty.pth", "empty.pt", "empty.safetensors"])
def test_empty_files(name: str, model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert refusal(model, tmp_path / name).endswith(f"{name} is empty: download or save it again")


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.pth.tar", "model.ckpt"])
def test_unknown_suffixes(name: str, model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = refusal(model, tmp_path / name)
    assert message.endswith("expected a checkpoint that ends in .pth, .pt, .bin, .safetensors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(2)], "got list"),
        (torch.zeros(2), "got Tensor"),
        (3, "got int"),
        ({}, "got an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "got int under 'epoch'"),
        ({"model": {"a.weight": torch.zeros(2), "step": 5}}, "got int under 'step'"),
        ({0: torch.zeros(2)}, "got Tensor under 0"),
    ],
)
def test_files_without_a_state_dict(
    content: object, says: str, model: nn.Module, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "odd.pth")
    message = refusal(model, tmp_path / "odd.pth")
    assert "expected names and tensors (a state dict)" in message
    assert says in message
    assert "save model.state_dict()" in message


def test_safetensors_missing_names_the_extra(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    message = refusal(model, tmp_path / "weights.safetensors")
    assert "pip install 'edgevit[convert]'" in message

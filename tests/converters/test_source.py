"""From a model reference to a module: every kind of reference, every mistake in one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

from converters.errors import ConvertError
from converters.export import export_folded, export_source
from converters.pictures import as_uint8, proof_pictures
from converters.reparam import reparameterize
from converters.source import load_source, state_digest
from edgevit.models import ModelError, create_model, model_config

CFG = {
    "input_size": (3, 24, 32),
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.25, 0.3),
    "crop_pct": 0.9,
    "interpolation": "bilinear",
}


class Small(nn.Module):
    """A classifier of five classes that takes any size."""

    def __init__(self, cfg: dict[str, object] | None = None, channels: int = 3) -> None:
        super().__init__()
        if cfg is not None:
            self.pretrained_cfg = cfg
        self.conv = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def small(cfg: dict[str, object] | None = None) -> nn.Module:
    return randomise(Small(cfg), 0)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; what it adds to Python's path and modules goes afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("usernets"):
            del sys.modules[name]


# Every kind of reference


def test_zoo() -> None:
    source = load_source("shvit_s1", classes=7)
    config = model_config("shvit_s1")
    assert (source.ref, source.family, source.num_classes) == ("shvit_s1", "shvit", 7)
    assert (source.weights, source.trained) == ("random, seed 0", False)
    pre = source.preprocessing
    assert (pre.height, pre.width, pre.crop_pct) == (224, 224, config.crop_pct)
    assert (pre.mean, pre.std) == (list(config.mean), list(config.std))
    assert pre.interpolation == config.interpolation
    assert (pre.input_dtype, pre.input_range) == ("float32", (0.0, 1.0))
    assert not any(m.training for m in source.module.modules())
    assert source.weights_sha256 == state_digest(source.module)


def test_zoo_at_another_size() -> None:
    source = load_source("shvit_s1", size=96)
    assert (source.preprocessing.height, source.preprocessing.width) == (96, 96)


def test_timm(timm: ModuleType) -> None:
    source = load_source("timm:mobilenetv3_small_050", classes=9)
    cfg = timm.create_model("mobilenetv3_small_050").pretrained_cfg
    assert (source.ref, source.family, source.num_classes) == (
        "timm:mobilenetv3_small_050",
        None,
        9,
    )
    assert (source.weights, source.trained) == ("random, seed 0", False)
    pre = source.preprocessing
    assert (3, pre.height, pre.width) == cfg["input_size"]
    assert (pre.mean, pre.std) == (list(cfg["mean"]), list(cfg["std"]))
    assert (pre.crop_pct, pre.interpolation) == (cfg["crop_pct"], cfg["interpolation"])
    assert not any(m.training for m in source.module.modules())
    with torch.no_grad():
        assert source.module(torch.rand(1, 3, 224, 224)).shape == (1, 9)


def test_factory_in_the_working_folder(user_folder: Path) -> None:
    package = user_folder / "usernets_a"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "ready = tiny()\n"
    )
    source = load_source("usernets_a.nets:tiny", size=32)
    assert source.ref == "usernets_a.nets:tiny"
    assert (source.num_classes, source.weights, source.trained) == (4, "given", True)
    assert (source.preprocessing.height, source.preprocessing.width) == (32, 32)
    ready = load_source("usernets_a.nets:ready", size=32)  # a module may stand there as well
    assert ready.module is sys.modules["usernets_a.nets"].ready


def test_a_module_itself() -> None:
    model = small(CFG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = load_source(model)
    assert source.module is model
    assert (source.ref, source.num_classes, source.weights) == ("Small", 5, "given")
    assert all(torch.equal(before[k], v) for k, v in source.module.state_dict().items())
    pre = source.preprocessing
    assert (pre.height, pre.width, pre.crop_pct) == (24, 32, 0.9)
    assert (pre.mean, pre.std) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert source.notes == ()


def test_a_module_without_a_cfg_takes_its_input_as_it_is() -> None:
    source = load_source(small(), size=40)
    assert (source.preprocessing.mean, source.preprocessing.std) == ([0.0] * 3, [1.0] * 3)
    assert "no mean and std" in source.notes[0]


def test_weights_from_a_file(tmp_path: Path) -> None:
    model = randomise(create_model("shvit_s1", num_classes=6), 3)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    source = load_source("shvit_s1", weights=tmp_path / "mine.pth", classes=6)
    assert (source.weights, source.trained) == ("mine.pth", True)
    assert source.weights_sha256 == state_digest(model)


# Mistakes


def test_unknown_zoo_name() -> None:
    with pytest.raises(ModelError, match=r"did you mean .*shvit_s1"):
        load_source("shvit_1s")


def test_unknown_timm_name(timm: ModuleType) -> None:
    assert timm
    with pytest.raises(ConvertError, match=r"did you mean .*timm:shvit_s1"):
        load_source("timm:shvit_s11")


def test_factory_of_a_package_that_is_not_there(user_folder: Path) -> None:
    with pytest.raises(ConvertError, match=r"cannot import 'usernets_missing'.*in this folder"):
        load_source("usernets_missing.nets:tiny")
    assert user_folder


USER_MODULE = """
import torch
from torch import nn
def broken(): raise ValueError("no such width: 7")
def needs(width): return nn.Linear(width, width)
def number(): return 7
def pair(): return Out(lambda x: (x, x))
def batch(): return Out(lambda x: torch.zeros(2, 5))
def image(): return Out(lambda x: x)
class Out(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)
"""

FACTORY_ERRORS = {
    "nothing": r"'usernets_b' has no 'nothing'; it has: .*broken",
    "number": r"gave a int, expected a torch\.nn\.Module",
    "broken": r"calling 'usernets_b:broken'.*ValueError: no such width: 7",
    "needs": r"calling 'usernets_b:needs' without arguments failed: .*width",
    "pair": r"must give logits of shape \(1, classes\), got tuple",
    "batch": r"must give logits of shape \(1, classes\), got \(2, 5\)",
    "image": r"must give logits of shape \(1, classes\), got \(1, 3, 32, 32\)",
}


@pytest.mark.parametrize("name", FACTORY_ERRORS)
def test_factory_mistakes(name: str, user_folder: Path) -> None:
    (user_folder / "usernets_b.py").write_text(USER_MODULE)
    with pytest.raises(ConvertError, match=FACTORY_ERRORS[name]) as info:
        load_source(f"usernets_b:{name}", size=32)
    assert info.value.exit_code == 2


def test_factory_in_a_file_that_does_not_import(user_folder: Path) -> None:
    (user_folder / "usernets_c.py").write_text("def tiny(:\n")
    with pytest.raises(ConvertError, match=r"importing 'usernets_c' failed: SyntaxError"):
        load_source("usernets_c:tiny")
    (user_folder / "usernets_d.py").write_text("import usernets_not_installed\n")
    with pytest.raises(ConvertError, match="cannot import 'usernets_not_installed'"):
        load_source("usernets_d:tiny")


def test_empty_module_name() -> None:
    with pytest.raises(ConvertError, match="importing '' failed"):
        load_source(":tiny")


def test_one_channel() -> None:
    cfg = {**CFG, "input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,)}
    with pytest.raises(ConvertError, match=r"takes 1 channels, expected 3"):
        load_source(Small(cfg, channels=1))


def test_one_channel_without_a_cfg() -> None:
    with pytest.raises(ConvertError, match=r"does not take pictures of shape \(1, 3, 224, 224\)"):
        load_source(Small(channels=1))


def test_a_side_that_the_strides_do_not_divide() -> None:
    with pytest.raises(
        ModelError, match=r"multiple of 32 pixels, got 230; the nearest: 224 or 256"
    ):
        load_source("efficientformer_l1", size=230)


def test_a_size_that_a_timm_model_does_not_take(timm: ModuleType) -> None:
    """timm's EfficientFormer accepts any size when it is built, and runs at its own only."""
    assert timm
    with pytest.raises(ConvertError, match=r"256.*size") as info:
        load_source("timm:efficientformer_l1", size=256)
    assert info.value.exit_code == 2


@pytest.mark.parametrize("size", [0, -224])
def test_size_that_is_none(size: int) -> None:
    with pytest.raises(ConvertError, match="positive number of pixels"):
        load_source("shvit_s1", size=size)


def test_input_type_that_is_none() -> None:
    with pytest.raises(ConvertError, match="must be float32 or uint8, got 'int8'"):
        load_source("shvit_s1", input_dtype="int8")


def test_class_count_of_a_given_module() -> None:
    with pytest.raises(ConvertError, match="has 5 classes and --classes says 7"):
        load_source(small(), classes=7)
    assert load_source(small(), classes=5).num_classes == 5


@pytest.mark.parametrize("classes", [0, -1])
def test_no_classes(classes: int) -> None:
    with pytest.raises(ModelError, match="at least 1 class"):
        load_source("shvit_s1", classes=classes)


def test_a_model_that_cannot_be_exported() -> None:
    class Branching(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() > 0 else -x)

    with pytest.raises(
        ConvertError, match=r"torch\.export cannot export 'Branching': the model \(Branch"
    ):
        export_source(load_source(Branching(CFG)))


# Random weights


@pytest.mark.parametrize(
    "ref",
    [
        "shvit_s1",
        "efficientformer_l1",
        "timm:efficientformerv2_s0",
        "timm:levit_128s",
        "timm:deit_tiny_patch16_224",
    ],
)
@torch.no_grad()
def test_random_weights_are_settled(ref: str, timm: ModuleType) -> None:
    """Pictures change the output, and no parameter is left that a converter could fold away."""
    assert timm
    source = load_source(ref)
    pre = source.preprocessing
    mean, std = torch.tensor(pre.mean), torch.tensor(pre.std)
    x_BHWC = torch.from_numpy(proof_pictures(pre.height, pre.width)[:4])
    x_BCHW = ((x_BHWC - mean) / std).permute(0, 3, 1, 2)
    logits = source.module(x_BCHW)
    spread = (logits.amax(0) - logits.amin(0)).max()
    assert spread > 0.1
    for name, value in source.module.named_parameters():
        assert value.numel() == 1 or value.max() - value.min() > 1e-3, name
    for name, value in source.module.named_buffers():
        if name.endswith("running_var"):
            assert (value - 1).abs().max() > 1e-3, name
    # A chaotic network would show other outputs in float64, and no artefact could follow it.
    exact = copy.deepcopy(source.module).double()(x_BCHW.double())
    assert (logits - exact).abs().max() <= 2e-5 * spread


def test_the_same_weights_every_time() -> None:
    torch.manual_seed(1)
    one = load_source("shvit_s1").weights_sha256
    torch.manual_seed(2)
    assert load_source("shvit_s1").weights_sha256 == one
    assert load_source("shvit_s1", classes=10).weights_sha256 != one


def test_the_callers_random_state_stays() -> None:
    torch.manual_seed(5)
    load_source("shvit_s1")
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_digest_sees_names_types_shapes_and_values() -> None:
    def digest(value: Tensor, name: str = "w") -> str:
        module = nn.Module()
        module.register_buffer(name, value)
        return state_digest(module)

    w = torch.arange(6.0)
    others = [w.reshape(2, 3), w.double(), w + 1, w.int().view(torch.float32)]
    digests = [digest(w), digest(w, "v"), *map(digest, others), digest(torch.tensor(True))]
    assert len(set(digests)) == len(digests)
    assert digest(w.clone()) == digest(w)
    assert digest(torch.arange(12.0)[::2] / 2) == digest(w)  # strides are no part of it


# The normalisation inside


@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
@torch.no_grad()
def test_the_graph_is_the_model_behind_its_normalisation(input_dtype: str) -> None:
    model = small(CFG)
    source = load_source(model, input_dtype=input_dtype)
    pictures = proof_pictures(24, 32)
    if input_dtype == "uint8":
        pictures = as_uint8(pictures)
        assert source.preprocessing.input_range == (0.0, 255.0)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    unit = x_BCHW.float() / 255 if input_dtype == "uint8" else x_BCHW
    mean = torch.tensor(CFG["mean"]).reshape(1, 3, 1, 1)
    std = torch.tensor(CFG["std"]).reshape(1, 3, 1, 1)
    want = model((unit - mean) / std)
    graph = export_source(source)
    got = torch.cat([graph(x[None]) for x in x_BCHW])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    folded = reparameterize(graph, x_BCHW)
    assert folded.proof.max_rel_float64 <= 1e-10
    ops = [
        node.target._schema.name.removeprefix("aten::")
        for node in folded.module.graph.nodes
        if node.op == "call_function"
    ]
    cast = [op for op in ops if op in ("to", "_assert_tensor_metadata")]
    assert bool(cast) == (input_dtype == "uint8")
    assert [op for op in ops if op not in cast] == ["sub", "conv2d", "relu", "mean", "linear"]


def test_no_normalisation_no_ops() -> None:
    graph = export_source(load_source(small(), size=24))
    targets = {str(node.target) for node in graph.graph.nodes}
    assert not any("sub" in target or "div" in target for target in targets)


@torch.no_grad()
def test_the_folded_graph_exports_again() -> None:
    x_BCHW = torch.from_numpy(proof_pictures(24, 32)).permute(0, 3, 1, 2).contiguous()
    folded = reparameterize(export_source(load_source(small(CFG))), x_BCHW)
    program = export_folded(folded.module, x_BCHW[:1])
    got = torch.cat([program.module()(x[None]) for x in x_BCHW])
    torch.testing.assert_close(got, folded.folded_outputs, rtol=0, atol=0)

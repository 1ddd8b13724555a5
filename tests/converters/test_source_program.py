"""`path.pt2` as a model: what it must be, and that none of its code runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_over_spread, pictures, randomise
from torch import Tensor, nn
from torch._export.serde import serialize
from torch.export import Dim
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from converters.errors import ConvertError
from converters.export import export_folded, export_source
from converters.pictures import proof_pictures
from converters.reparam import reparameterize
from converters.source import load_source

SIDE = 32
GRAPH = "models/model.json"
UNREADABLE = r"is no readable torch\.export file"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Five classes, any size, any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Calls(nn.Module):
    """A network around a function of the picture and the net."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.net = Net()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.net, *args, **kwargs)


def net() -> nn.Module:
    return randomise(Net(), 0).eval()


def save(path: Path, model: nn.Module, *args: Any, **more: Any) -> Path:
    args = args or (torch.rand(1, 3, SIDE, SIDE),)
    torch.export.save(torch.export.export(model, args, **more), path)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save(tmp_path / "net.pt2", net())


# What it gives


@torch.no_grad()
def test_the_program_is_the_model(good: Path) -> None:
    source = load_source(str(good))
    assert (source.ref, source.family, source.num_classes) == (str(good), None, 5)
    assert (source.weights, source.trained) == ("net.pt2", True)
    pre = source.preprocessing
    assert (pre.height, pre.width, pre.mean, pre.std) == (SIDE, SIDE, [0.0] * 3, [1.0] * 3)
    assert "normalisation inside" in source.notes[0]
    x_BCHW = pictures(4, SIDE, seed=1)
    model = net()
    want = torch.cat([model(x[None]) for x in x_BCHW])
    got = torch.cat([source.module(x[None]) for x in x_BCHW])
    assert error_over_spread(got, want) == 0
    assert source.module.eval() is source.module.train() is source.module


@torch.no_grad()
def test_it_exports_folds_and_exports_again(good: Path) -> None:
    x_BCHW = torch.from_numpy(proof_pictures(SIDE, SIDE)).permute(0, 3, 1, 2).contiguous()
    folded = reparameterize(export_source(load_source(str(good))), x_BCHW)
    assert folded.proof.rules["batch norm into the linear map before it"] == 1
    assert folded.proof.max_rel_float64 <= 1e-10
    program = export_folded(folded.module, x_BCHW[:1]).module()
    got = torch.cat([program(x[None]) for x in x_BCHW])
    assert error_over_spread(got, net()(x_BCHW)) <= 1e-5


@pytest.mark.parametrize("dim", [Dim.DYNAMIC, Dim("b", max=64), Dim("b", min=1), Dim("b", min=2)])
def test_an_open_batch(tmp_path: Path, dim: Dim) -> None:
    example = torch.rand(2, 3, SIDE, SIDE)
    path = save(tmp_path / "n.pt2", net(), example, dynamic_shapes={"x": {0: dim}})
    source = load_source(str(path))
    assert source.num_classes == 5
    assert source.preprocessing.height == SIDE
    graph = export_source(source)
    shapes = [
        n.meta["val"].shape for n in graph.graph.nodes if "val" in n.meta and n.op != "output"
    ]
    assert all(isinstance(side, int) for shape in shapes for side in shape)


def test_open_sides_take_a_size(tmp_path: Path) -> None:
    sides = {2: Dim("h", min=16, max=64), 3: Dim("w", min=16, max=64)}
    path = save(tmp_path / "n.pt2", net(), dynamic_shapes={"x": sides})
    assert load_source(str(path)).preprocessing.height == SIDE  # that of its example
    pre = load_source(str(path), size=48).preprocessing
    assert (pre.height, pre.width) == (48, 48)
    with pytest.raises(ConvertError, match=r"does not take pictures of shape \(1, 3, 96, 96\)"):
        load_source(str(path), size=96)


def test_the_same_size_may_be_said(good: Path) -> None:
    assert load_source(str(good), size=SIDE).preprocessing.height == SIDE


# What does not fit


def test_size_weights_and_classes_are_its_own(good: Path) -> None:
    with pytest.raises(ConvertError, match=r"for pictures of 32 x 32 and --size says 64"):
        load_source(str(good), size=64)
    with pytest.raises(ConvertError, match=r"has its weights inside, --weights w\.pth would"):
        load_source(str(good), weights=Path("w.pth"))
    with pytest.raises(ConvertError, match=r"class count inside: leave --classes 5 out"):
        load_source(str(good), classes=5)


RGB = (1, 3, SIDE, SIDE)
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = {
    "two inputs": (
        lambda net, x, y: net(x + y), (torch.rand(RGB), torch.rand(RGB)), {},
        r"takes float32 \(1, 3, 32, 32\) and float32 \(1, 3, 32, 32\) and gives float32 \(1, 5\)",
    ),
    "a number": (lambda net, x, y: net(x * y), (torch.rand(RGB), 2), {}, r"32, 32\) and 2 and"),
    "bytes": (
        lambda net, x: net(x.float()), (torch.zeros(RGB, dtype=torch.uint8),), {},
        r"takes uint8 \(1, 3, 32, 32\)",
    ),
    "half": (lambda net, x: net(x.float()), (torch.rand(RGB).half(),), {}, r"takes float16"),
    "no batch": (lambda net, x: net(x[None]), (torch.rand(RGB[1:]),), {}, r"takes float32 \(3, 32"),
    "grey": (lambda net, x: net(x.expand(RGB)), (torch.rand(1, 1, SIDE, SIDE),), {}, r"\(1, 1, 32"),
    "channels last": (
        lambda net, x: net(x.permute(0, 3, 1, 2)), (torch.rand(1, SIDE, SIDE, 3),), {}, "32, 32, 3",
    ),
    "batch of 4": (lambda net, x: net(x), (torch.rand(4, 3, SIDE, SIDE),), {}, "batch cannot be 1"),
    "keyword": (lambda net, x: net(x), (), {"x": torch.rand(RGB)}, "in a container or by keyword"),
    "list": (lambda net, x: net(x[0]), ([torch.rand(RGB)],), {}, "in a container or by keyword"),
    "two outputs": (
        lambda net, x: (net(x), x), (torch.rand(RGB),), {},
        r"gives float32 \(1, 5\) and float32 \(1, 3, 32, 32\)",
    ),
    "dict": (lambda net, x: {"y": net(x)}, (torch.rand(RGB),), {}, "logits in a container"),
    "features": (lambda net, x: net.conv(x), (torch.rand(RGB),), {}, r"float32 \(1, 8, 16, 16\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_other_calls_are_refused(tmp_path: Path, name: str) -> None:
    function, args, kwargs, message = CALLS[name]
    program = torch.export.export(Calls(function).eval(), args, kwargs)
    torch.export.save(program, tmp_path / "n.pt2")
    with pytest.raises(ConvertError, match=message) as info:
        load_source(str(tmp_path / "n.pt2"))
    assert "expected one picture, float32 of shape (1, 3, height, width)" in str(info.value)
    assert info.value.exit_code == 2


def test_a_batch_that_starts_above_one(tmp_path: Path) -> None:
    open_batch = {"x": {0: Dim("b", min=4, max=9)}}
    path = save(tmp_path / "n.pt2", net(), torch.rand(5, 3, SIDE, SIDE), dynamic_shapes=open_batch)
    with pytest.raises(ConvertError, match="its batch cannot be 1"):
        load_source(str(path))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "n.pt2", Net().train(), torch.rand(1, 3, SIDE, SIDE))
    with pytest.raises(ConvertError, match=r"exported in training mode \(aten\..*call model.eval"):
        load_source(str(path))


def test_what_is_no_program(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    cut = tmp_path / "cut.pt2"
    for length in (0, 10, len(data) // 2, len(data) - 30):
        cut.write_bytes(data[:length])
        with pytest.raises(ConvertError, match=UNREADABLE):
            load_source(str(cut))
    flipped = bytearray(data)
    flipped[data.index(b'"graph_module"')] ^= 0xFF
    cut.write_bytes(flipped)
    with pytest.raises(ConvertError, match=UNREADABLE):
        load_source(str(cut))
    torch.jit.trace(net(), torch.rand(RGB)).save(str(cut))
    with pytest.raises(ConvertError, match=UNREADABLE):
        load_source(str(cut))
    torch.save(net().state_dict(), cut)
    with pytest.raises(ConvertError, match=UNREADABLE):
        load_source(str(cut))
    with pytest.raises(ConvertError, match=r"absent\.pt2 does not exist"):
        load_source(str(tmp_path / "absent.pt2"))
    with pytest.raises(ConvertError, match="is a folder"):
        (tmp_path / "folder.pt2").mkdir()
        load_source(str(tmp_path / "folder.pt2"))


# Code in the file


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


def rewrite(source: Path, goal: Path, changes: dict[str, bytes]) -> Path:
    """A copy of an archive with other records."""
    with PT2ArchiveReader(str(source)) as old, PT2ArchiveWriter(str(goal)) as new:
        kept = [n for n in old.get_file_names() if not n.startswith((".data", "byteorder"))]
        for name in dict.fromkeys([*kept, *changes]):
            new.write_bytes(name, changes.get(name) or old.read_bytes(name))
    return goal


def record(path: Path, name: str) -> Any:
    with PT2ArchiveReader(str(path)) as archive:
        return json.loads(archive.read_string(name))


def graph_with(path: Path, old: str, new: str) -> dict[str, bytes]:
    """The graph of an archive, a piece of its text replaced."""
    text = json.dumps(record(path, GRAPH))
    assert old in text
    return {GRAPH: text.replace(old, new).encode()}


def test_example_inputs_that_are_code(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = tmp_path / "it ran"
    torch.save(((Payload(proof),), {}), tmp_path / "payload")
    evil = rewrite(good, tmp_path / "evil.pt2", {SAMPLES: (tmp_path / "payload").read_bytes()})
    with pytest.raises(ConvertError, match=r"wants to run code \(posix\.mkdir\)") as info:
        load_source(str(evil))
    assert info.value.exit_code == 2
    assert not proof.exists()
    monkeypatch.setattr(serialize.log, "disabled", True)  # its warning lacks an argument
    torch.export.load(evil)
    assert proof.exists(), "torch itself runs it"


@pytest.mark.parametrize("kind", ["opaque_obj_0", "custom_obj_0"])
def test_objects_as_constants(good: Path, tmp_path: Path, kind: str) -> None:
    data = pickle.dumps(Payload(tmp_path / "it ran"))
    evil = rewrite(good, tmp_path / "evil.pt2", {f"data/constants/{kind}": data})
    with pytest.raises(ConvertError, match=rf"pickled Python object \(data/constants/{kind}\)"):
        load_source(str(evil))
    assert not (tmp_path / "it ran").exists()


def test_pickled_weights(good: Path, tmp_path: Path) -> None:
    proof, name = tmp_path / "it ran", "data/weights/model_weights_config.json"
    config = record(good, name)
    config["config"]["head.bias"] |= {"use_pickle": True}
    file = f"data/weights/{config['config']['head.bias']['path_name']}"
    torch.save(Payload(proof), tmp_path / "payload")
    changes = {name: json.dumps(config).encode(), file: (tmp_path / "payload").read_bytes()}
    evil = rewrite(good, tmp_path / "evil.pt2", changes)
    with pytest.raises(ConvertError, match=r"tensor 'head\.bias' is a pickled Python object"):
        load_source(str(evil))
    assert not proof.exists()
    evil = rewrite(good, evil, {"data/weights/model.pt": (tmp_path / "payload").read_bytes()})
    with pytest.raises(ConvertError, match=r"weights/model\.pt wants to run code"):
        load_source(str(evil))
    assert not proof.exists()


def test_the_older_format_is_never_unpickled(tmp_path: Path) -> None:
    """torch.export.load falls back to it; here nothing does."""
    torch.save(Payload(tmp_path / "it ran"), tmp_path / "payload")
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        for part in ("state_dict", "constants", "example_inputs"):
            archive.write(tmp_path / "payload", f"serialized_{part}.pt")
    with pytest.raises(ConvertError, match=UNREADABLE):
        load_source(str(tmp_path / "evil.pt2"))
    assert not (tmp_path / "it ran").exists()


def test_compiled_libraries(good: Path, tmp_path: Path) -> None:
    name = "data/aotinductor/model/model.so"
    evil = rewrite(good, tmp_path / "evil.pt2", {name: b"\x7fELF"})
    with pytest.raises(ConvertError, match=r"holds compiled code \(data/aotinductor"):
        load_source(str(evil))
    evil = rewrite(good, tmp_path / "evil.pt2", {"data/else": b"?"})
    with pytest.raises(ConvertError, match="unknown record 'data/else'"):
        load_source(str(evil))


def test_names_that_are_source_code(good: Path, tmp_path: Path) -> None:
    """The graph becomes Python source: a value's name could close its function and go on."""
    proof = tmp_path / "it ran"
    code = f"a = 1\\n__import__('os').mkdir('{proof}')\\nb"
    evil = rewrite(good, tmp_path / "evil.pt2", graph_with(good, '"relu"', f'"{code}"'))
    with pytest.raises(ConvertError, match="code where a name belongs"):
        load_source(str(evil))
    assert not proof.exists()


def test_sizes_that_are_source_code(tmp_path: Path) -> None:
    """sympy evaluates the text of a symbolic size."""
    example = torch.rand(2, 3, SIDE, SIDE)
    path = save(tmp_path / "n.pt2", net(), example, dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    symbol = next(iter(record(path, GRAPH)["range_constraints"]))
    proof = tmp_path / "it ran"
    old, new = (
        f"Symbol('{symbol}', positive=True, integer=True)",
        f"__import__('os').mkdir('{proof}')",
    )
    evil = rewrite(path, tmp_path / "evil.pt2", graph_with(path, old, new))
    with pytest.raises(ConvertError, match="code where a name belongs"):
        load_source(str(evil))
    assert not proof.exists()
    with suppress(Exception):
        torch.export.load(evil)
    assert proof.exists(), "torch itself runs it"


def test_functions_that_are_no_ops(good: Path, tmp_path: Path) -> None:
    old = "torch.ops.aten.relu.default"
    for new in ("torch.os.system", "_operator.methodcaller", "torch.load"):
        evil = rewrite(good, tmp_path / "evil.pt2", graph_with(good, old, new))
        with pytest.raises(ConvertError, match=UNREADABLE):
            load_source(str(evil))
    graph = record(good, GRAPH) | {"verifiers": []}
    evil = rewrite(good, tmp_path / "evil.pt2", {GRAPH: json.dumps(graph).encode()})
    with pytest.raises(ConvertError, match="unknown dialect"):
        load_source(str(evil))


def test_guards_are_not_compiled(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    path = save(tmp_path / "n.pt2", net())
    graph = record(path, GRAPH) | {"guards_code": [f"__import__('os').mkdir('{proof}')"]}
    evil = rewrite(path, tmp_path / "evil.pt2", {GRAPH: json.dumps(graph).encode()})
    export_source(load_source(str(evil)))
    assert not proof.exists()


def test_trees_that_import_modules(good: Path, tmp_path: Path) -> None:
    graph = record(good, GRAPH)
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    context = {"default_factory_module": "antigravity", "default_factory_name": "geohash"}
    tree = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": []}
    signature["out_spec"] = json.dumps([1, tree])
    evil = rewrite(good, tmp_path / "evil.pt2", {GRAPH: json.dumps(graph).encode()})
    with pytest.raises(ConvertError, match=r"inputs or outputs are a collections\.defaultdict"):
        load_source(str(evil))


def test_ops_that_open_files(good: Path, tmp_path: Path) -> None:
    graph = record(good, GRAPH)
    nodes = graph["graph_module"]["graph"]["nodes"]
    (node,) = (n for n in nodes if n["target"] == "torch.ops.aten.relu.default")
    node["target"] = "torch.ops.aten.from_file.default"
    name = {"name": "filename", "arg": {"as_string": str(tmp_path / "f")}, "kind": 1}
    size = {"name": "size", "arg": {"as_int": 2048}, "kind": 1}
    node["inputs"] = [name, {"name": "shared", "arg": {"as_bool": True}, "kind": 1}, size]
    evil = rewrite(good, tmp_path / "evil.pt2", {GRAPH: json.dumps(graph).encode()})
    with pytest.raises(ConvertError, match=r"its graph opens files \(aten\.from_file"):
        load_source(str(evil))
    assert not (tmp_path / "f").exists()

"""Each target on a tiny model, in every input type and precision it has, on its real engine."""

from __future__ import annotations

import importlib
import io
import sys

import numpy as np
import pytest
import torch
from cli_tools import CLASSES, SIZE, TINY, write_model
from torch import Tensor, nn

from converters.errors import ConvertError
from converters.lower.absent import absent
from converters.lower.base import (
    PRECISIONS,
    REFUSED,
    TARGETS,
    Job,
    check_precision,
    lower_to,
    resolve_targets,
    versions_of,
)
from converters.lower.half import half_inside
from converters.lower.limits import forecast
from converters.pipeline import ConvertOptions, _prepare, _timer
from converters.progress import silent
from converters.verify import verify_artifact
from runtime.manifest import REFERENCE_NAME

DTYPES = ("float32", "uint8")
NO_REASON = (None, None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Input dtype -> the folded program of the tiny model and a folder with its reference."""
    folder = write_model(tmp_path_factory.mktemp("lower"))
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "tinynet", raising=False)
        for dtype in DTYPES:
            found = _prepare(TINY, ConvertOptions(input_dtype=dtype), None, _timer({}, silent))
            place = folder / dtype
            place.mkdir()
            np.savez(place / REFERENCE_NAME, inputs=found.pictures, outputs=found.outputs)
            made[dtype] = torch.export.load(io.BytesIO(found.program)), place
    return made


def test_reference_inputs_are_of_the_inputs_type(prepared):
    for dtype, (_, folder) in prepared.items():
        with np.load(folder / REFERENCE_NAME) as arrays:
            assert arrays["inputs"].dtype == dtype and arrays["outputs"].dtype == np.float32
            top = 255 if dtype == "uint8" else 1
            assert 0.9 * top < arrays["inputs"].max() <= top


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("target", "precision"),
    [(t, p) for t, row in TARGETS.items() if t != "coreml" for p in row.precisions],
)
def test_the_engine_agrees_with_torch(prepared, target, precision, dtype):
    program, folder = prepared[dtype]
    job = Job(folder / f"{precision}-{TARGETS[target].file}", precision, SIZE, SIZE, dtype)
    before = {name: value.clone() for name, value in program.state_dict.items()}
    lowered = lower_to(target, program, job)
    for name, value in program.state_dict.items():
        assert torch.equal(value, before[name]), f"{name} was changed, and others read it after us"
    assert lowered.tool_versions.keys() <= set(TARGETS[target].packages)
    found = verify_artifact(target, program, job, folder)
    assert found["input"]["dtype"] == dtype and found["output"]["shape"] == [1, CLASSES]
    verdict = found["verification"]
    assert verdict["status"] == "passed", verdict
    if precision == "fp16":
        assert 1e-5 < verdict["error_over_spread"] < 0.02, "half weights show, a little"
        fp32 = folder / f"fp32-{TARGETS[target].file}"
        if fp32.exists():
            assert job.file.stat().st_size < fp32.stat().st_size
    else:
        assert verdict["error_over_spread"] <= 1e-4


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", "float32"), ("fp16", "uint8"), ("fp32", "float32")]
)
def test_core_ml_takes_an_rgb_picture_and_says_what_it_is(prepared, precision, dtype):
    """What can be known off macOS: the interface, the scale of the pixels, the metadata."""
    import coremltools as ct

    program, folder = prepared[dtype]
    file = folder / f"{precision}.mlpackage"
    job = Job(file, precision, SIZE, SIZE, dtype, "a tiny net", {"model": TINY})
    lower_to("coreml", program, job)
    spec = ct.models.MLModel(str(file), skip_model_load=True).get_spec()
    (image,) = spec.description.input
    kind = image.type.imageType
    assert (image.name, kind.width, kind.height) == ("image", SIZE, SIZE)
    assert kind.ColorSpace.Name(kind.colorSpace) == "RGB"
    (logits,) = spec.description.output
    array = logits.type.multiArrayType
    assert logits.name == "logits" and array.ArrayDataType.Name(array.dataType) == "FLOAT32"
    assert spec.specificationVersion == 7, "iOS 16"
    assert spec.description.metadata.shortDescription == "a tiny net"
    assert spec.description.metadata.userDefined["model"] == TINY
    names = [op.type for op in operations(spec)]
    assert names.count("conv") == 3 and "batch_norm" not in names
    assert ("mul" in names) == (dtype == "float32"), "pixels of 0..255 to [0, 1], where asked for"
    assert ("cast" in names) == (precision == "fp16")
    found = verify_artifact("coreml", program, job, folder)
    if sys.platform != "darwin":
        assert found["verification"]["status"] == "not_executed"
        assert found["verification"]["reason"].startswith("converted, not executed: ")
        assert found["output"]["shape"] == [1, CLASSES]


def operations(spec):
    """The operations of an ML program's main function."""
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return block.operations


class Casts(nn.Module):
    """Computes a part in float32 on purpose, as attention often does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("offset", torch.linspace(-1, 1, 4).reshape(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).to(torch.float32) + self.offset
        x = x + torch.zeros(1, 4, 1, 1)
        return x.softmax(1, dtype=torch.float32).mean((2, 3))


def test_half_inside_casts_weights_constants_and_explicit_casts():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8)
    program = torch.export.export(Casts().eval(), (x,))
    half = half_inside(program)
    values = [n.meta["val"] for n in half.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    floats = [v.dtype for v in values if v.is_floating_point()]
    assert floats.count(torch.float32) == 2, "the input and the output only"
    got, want = half.module()(x), program.module()(x)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().max() < 1e-2


def test_targets_are_named_in_the_tables_order():
    assert resolve_targets("onnx, coreml") == ["coreml", "onnx"]
    assert resolve_targets("all") == list(TARGETS) == resolve_targets(["all", "onnx"])
    with pytest.raises(ConvertError, match=r"unknown target 'tensorrt'\. Expected 'all' or some"):
        resolve_targets("all,tensorrt")
    with pytest.raises(ConvertError, match=r"'torchscript'|'exectorch' \(did you mean 'exec"):
        resolve_targets(["exectorch"])


def test_precisions_of_the_table():
    for name, row in TARGETS.items():
        assert check_precision(name, None) == row.default_precision in row.precisions
        assert set(row.precisions) <= set(PRECISIONS)
        for precision in set(PRECISIONS) - set(row.precisions):
            reason = REFUSED.get((name, precision), "no converter here makes it")
            with pytest.raises(ConvertError) as caught:
                check_precision(name, precision)
            assert f"target '{name}' has no precision '{precision}': {reason}" in str(caught.value)
    with pytest.raises(ConvertError, match=r"unknown precision 'f32' \(did you mean 'fp32'\?\)"):
        check_precision("onnx", "f32")


def test_versions_leave_out_what_is_not_installed():
    assert versions_of(("torch", "no-such-package")) == {"torch": torch.__version__}


def test_a_hidden_package_is_absent_inside_the_block_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with absent("colorsys", "json"):
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json"), "imported before, so left alone"
    assert importlib.import_module("colorsys").rgb_to_hsv


class Everything(nn.Module):
    """One of each op that an engine's fast path does not take as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.group(x)).mean(1, keepdim=True)
        a, b = x.expand(1, 4, 16, 16).split([2, 2], dim=1)
        x = torch.matmul(a, b)
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bicubic")
        return x.mean((-1, -2))


def test_forecast_counts_each_limit():
    module = torch.export.export(Everything().eval(), (torch.rand(1, 4, 16, 16),)).module()
    found = forecast(module)
    assert found["tflite"] == {} and found["onnx"] == {}
    assert {why.split(":")[0]: n for why, n in found["executorch"].items()} == {
        "group_norm": 1,
        "layer_norm": 1,
        "mean over other dimensions than H, W": 1,
        "matmul above rank 3": 1,
    }
    assert {why.split(":")[0]: n for why, n in found["coreml"].items()} == {
        "group_norm": 1,
        "upsample_bicubic2d": 1,
    }

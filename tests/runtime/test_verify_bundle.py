"""verify_bundle on real engines, and the inputs it makes for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.check import verify_bundle
from runtime.digest import sha256_of, size_of
from runtime.errors import CheckFailed, RuntimeFault
from runtime.inputs import random_input, to_input
from runtime.manifest import TensorSpec

ROOT = Path(__file__).resolve().parents[2]


def change_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_every_engine_passes(make_bundle):
    found = dict(verify_bundle(make_bundle("tflite", "onnx", "executorch")))
    assert sorted(found) == ["executorch", "onnx", "tflite"]
    for verification in found.values():
        assert verification.status == "passed" and verification.inputs == 4
        assert verification.error_over_spread < 1e-5
    assert found["onnx"].prover.startswith("onnxruntime ")


def test_targets_choose(make_bundle):
    folder = make_bundle("tflite", "onnx")
    assert [t for t, _ in verify_bundle(folder, targets=["onnx"])] == ["onnx"]
    with pytest.raises(RuntimeFault, match="Did you mean 'tflite'"):
        verify_bundle(folder, targets=["tfite"])


def test_wrong_reference_fails_with_numbers(make_bundle, tiny):
    folder = make_bundle("onnx")
    path = folder / "reference.npz"
    np.savez(path, inputs=tiny.inputs_NHWC, outputs=tiny.outputs_NK[::-1])
    change_manifest(folder, lambda m: m.update(reference_sha256=sha256_of(path)))
    ((_, verification),) = verify_bundle(folder)
    assert verification.status == "failed" and verification.error_over_spread > 0.1
    assert "error_over_spread" in verification.reason


def test_changed_artefact_is_refused_before_it_runs(make_bundle):
    folder = make_bundle("onnx")
    (folder / "tiny.onnx").write_bytes(b"other")
    with pytest.raises(CheckFailed, match="changed since it was made"):
        verify_bundle(folder)


def test_artefact_that_does_not_load_fails_and_the_others_go_on(make_bundle):
    folder = make_bundle("onnx", "tflite")
    (folder / "tiny.onnx").write_bytes(b"other")
    file = {"sha256": sha256_of(folder / "tiny.onnx"), "size_bytes": 5}
    change_manifest(folder, lambda m: m["artifacts"]["onnx"].update(file))
    found = dict(verify_bundle(folder))
    assert found["onnx"].status == "failed" and "cannot load" in found["onnx"].reason
    assert found["tflite"].status == "passed"


def test_engine_that_is_absent_is_not_executed(make_bundle, monkeypatch):
    folder = make_bundle("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ((_, verification),) = verify_bundle(folder)
    assert verification.status == "not_executed" and "edgevit[onnx]" in verification.reason


def test_core_ml_off_macos_is_not_executed(make_bundle):
    if sys.platform == "darwin":
        pytest.skip("this is macOS")
    folder = make_bundle("onnx")
    package = folder / "model.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    entry = {
        "target": "coreml",
        "file": package.name,
        "sha256": sha256_of(package),
        "size_bytes": size_of(package),
        "engine": "coreml",
    }
    change_manifest(folder, lambda m: m["artifacts"].update(coreml=m["artifacts"]["onnx"] | entry))
    verification = dict(verify_bundle(folder))["coreml"]
    assert verification.status == "not_executed"
    assert verification.reason.startswith("converted, not executed: Core ML runs on macOS only")


CHECK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtime.check import verify_bundle
found = dict(verify_bundle(Path(sys.argv[2])))
assert {v.status for v in found.values()} == {"passed"}, found
heavy = {"torch", "edgevit", "converters", "executorch", "litert_torch", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def test_tflite_and_onnx_need_no_torch(make_bundle):
    folder = make_bundle("tflite", "onnx")
    subprocess.run([sys.executable, "-c", CHECK, str(ROOT), str(folder)], check=True)


IMPORT_ALL = """
import sys, pkgutil, importlib
sys.path.insert(0, sys.argv[1])
import runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    importlib.import_module(module.name)
heavy = {"torch", "edgevit", "converters", "partition", "executorch", "onnxruntime", "coremltools",
         "ai_edge_litert", "tflite_runtime", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_the_whole_runtime_is_light():
    subprocess.run([sys.executable, "-c", IMPORT_ALL, str(ROOT)], check=True)


def spec(shape, dtype, layout):
    return TensorSpec(name="x", shape=shape, dtype=dtype, layout=layout)


def test_pictures_take_the_form_of_the_artefact():
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    nchw = to_input(picture, spec([1, 3, 4, 5], "float32", "NCHW"))
    assert nchw.dtype == np.float32 and nchw.flags.c_contiguous
    assert nchw[0, 2, 1, 3] == pytest.approx(picture[1, 3, 2] / 255)
    back = to_input(nchw[0].transpose(1, 2, 0), spec([1, 4, 5, 3], "uint8", "NHWC"))
    assert np.array_equal(back[0], picture)
    with pytest.raises(RuntimeFault, match="takes int8, a picture gives float32 or uint8"):
        to_input(picture, spec([1, 4, 5, 3], "int8", "NHWC"))
    with pytest.raises(RuntimeFault, match=r"takes \[1, 3, 8, 8\] \(NCHW\).*gives \[1, 3, 4, 5\]"):
        to_input(picture, spec([1, 3, 8, 8], "float32", "NCHW"))


def test_random_input_is_seeded_and_in_range():
    floats = spec([1, 3, 8, 8], "float32", "NCHW")
    x = random_input(floats)
    assert np.array_equal(x, random_input(floats)) and 0 <= x.min() < 0.1 and 0.9 < x.max() <= 1
    pixels = random_input(spec([1, 64, 64, 3], "uint8", "NHWC"))
    assert pixels.dtype == np.uint8 and pixels.max() == 255 and pixels.min() == 0

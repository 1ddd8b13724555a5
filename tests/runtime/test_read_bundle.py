"""Reading a bundle: what a user can do to the folder, and what the error then says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime.bundle import check_bytes, read_bundle, read_reference
from runtime.errors import CheckFailed, RuntimeFault


def test_reads_manifest_reference_and_paths(make_bundle, tiny):
    bundle = read_bundle(make_bundle("onnx"))
    check_bytes(bundle)
    assert bundle.artifact_path("onnx").name == "tiny.onnx"
    inputs, outputs = read_reference(bundle)
    assert np.array_equal(inputs, tiny.inputs_NHWC) and np.array_equal(outputs, tiny.outputs_NK)


def test_not_a_bundle(tmp_path):
    with pytest.raises(RuntimeFault, match=r"expected a bundle .* does not exist"):
        read_bundle(tmp_path / "gone")
    file = tmp_path / "model.onnx"
    file.touch()
    with pytest.raises(RuntimeFault, match=r"expected a bundle .* is a file"):
        read_bundle(file)
    with pytest.raises(RuntimeFault, match=r"has no manifest.json: it is not a bundle"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"schema_version": 9}', "made by a newer edgevit"),
        ("{}", "expected schema_version 1, got None"),
        ('{"schema_version": 1}', "field 'edgevit_version': Field required"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
    with pytest.raises(RuntimeFault, match=message):
        read_bundle(tmp_path)


def test_schema_error_names_the_first_bad_field(make_bundle):
    folder = make_bundle("onnx", change=lambda m: m["artifacts"]["onnx"].update(size_bytes="big"))
    with pytest.raises(RuntimeFault, match=r"artifacts\.onnx\.size_bytes"):
        read_bundle(folder)
    misspelt = make_bundle("onnx", change=lambda m: m.update(clases=3), name="other")
    with pytest.raises(RuntimeFault, match="field 'clases'"):
        read_bundle(misspelt)


def test_changed_bytes_fail_the_check(make_bundle):
    folder = make_bundle("onnx", "tflite")
    bundle = read_bundle(folder)
    path = folder / "tiny.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    expected = bundle.artifact("onnx").sha256[:12]
    with pytest.raises(CheckFailed, match=f"tiny.onnx: expected sha256 {expected}.*changed since"):
        check_bytes(bundle)
    check_bytes(bundle, ["tflite"])
    path.write_bytes(data[:-1])
    with pytest.raises(CheckFailed, match=f"expected {len(data)} bytes, got {len(data) - 1}"):
        check_bytes(bundle)
    path.unlink()
    with pytest.raises(CheckFailed, match="is not there") as caught:
        check_bytes(bundle)
    assert caught.value.exit_code == 1


def test_changed_reference_fails_the_check(make_bundle, tiny):
    folder = make_bundle("onnx")
    np.savez(folder / "reference.npz", inputs=tiny.inputs_NHWC, outputs=tiny.outputs_NK + 1)
    with pytest.raises(CheckFailed, match=r"reference\.npz"):
        check_bytes(read_bundle(folder))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..\\b", ""])
def test_paths_that_leave_the_bundle_are_refused(make_bundle, name):
    folder = make_bundle("onnx", change=lambda m: m["artifacts"]["onnx"].update(file=name))
    with pytest.raises(RuntimeFault, match="not a path inside the bundle"):
        read_bundle(folder).artifact_path("onnx")


def test_symbolic_links_are_refused(make_bundle, tiny):
    folder = make_bundle("onnx")
    (folder / "tiny.onnx").unlink()
    (folder / "tiny.onnx").symlink_to(tiny.paths["onnx"])
    with pytest.raises(RuntimeFault, match="symbolic link"):
        check_bytes(read_bundle(folder))


def test_unknown_target_names_the_near_one_and_the_failed_one(make_bundle):
    failure = {"stage": "lower", "error": "no kernel"}
    bundle = read_bundle(
        make_bundle("onnx", change=lambda m: m.update(failures={"coreml": failure}))
    )
    with pytest.raises(RuntimeFault, match=r"it has: onnx\. Did you mean 'onnx'"):
        bundle.artifact("onxx")
    with pytest.raises(RuntimeFault, match="conversion failed at lower: no kernel"):
        bundle.artifact("coreml")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((2, 32, 32, 3), np.float32)}, "outputs"),
        (
            {"inputs": np.zeros((2, 3, 32, 32), np.float32), "outputs": np.zeros((2, 7), "f4")},
            r"'inputs': expected float32 \(2, 32, 32, 3\)",
        ),
        (
            {"inputs": np.zeros((2, 32, 32, 3), np.float32), "outputs": np.zeros((3, 7), "f4")},
            r"'outputs': expected float32 \(2, 7\)",
        ),
        ({"inputs": np.array([{}]), "outputs": np.zeros((1, 7), "f4")}, "pickle"),
    ],
)
def test_bad_reference(make_bundle, arrays, message):
    folder = make_bundle("onnx")
    np.savez(folder / "reference.npz", **arrays)
    with pytest.raises(RuntimeFault, match=message):
        read_reference(read_bundle(folder))


def test_reference_that_is_no_archive(make_bundle):
    folder = make_bundle("onnx")
    (folder / "reference.npz").write_bytes(b"PK\3\4 cut short")
    with pytest.raises(RuntimeFault, match=r"expected an \.npz with the arrays"):
        read_reference(read_bundle(folder))


def test_uint8_reference(make_bundle, tiny):
    folder = make_bundle("onnx", change=lambda m: m["preprocessing"].update(input_dtype="uint8"))
    pictures = (tiny.inputs_NHWC * 255).astype(np.uint8)
    np.savez(folder / "reference.npz", inputs=pictures, outputs=tiny.outputs_NK)
    inputs, _ = read_reference(read_bundle(folder))
    assert inputs.dtype == np.uint8


def test_manifest_round_trip(make_bundle):
    folder = make_bundle("onnx")
    manifest = read_bundle(folder).manifest
    assert json.loads(manifest.model_dump_json())["artifacts"]["onnx"]["file"] == "tiny.onnx"

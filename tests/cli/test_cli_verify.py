"""`edgevit verify` on a real bundle, whole and spoilt."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_tools import FILES, edgevit

from runtime.bundle import read_bundle
from runtime.digest import sha256_of, size_of
from runtime.sessions import open_session


def sign(bundle, target):
    """Make the manifest agree with the artefact as it is now."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    file = bundle / FILES[target]
    manifest["artifacts"][target] |= {"sha256": sha256_of(file), "size_bytes": size_of(file)}
    path.write_text(json.dumps(manifest))


def test_every_engine_agrees_and_core_ml_gets_no_tick(bundle):
    answer = edgevit("verify", bundle, cwd=bundle)
    assert answer.code == 0 and answer.err == ""
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    for target in ("tflite", "executorch", "onnx"):
        assert "✓ error/spread" in lines[target]
    assert "converted, not executed: Core ML runs on macOS only" in lines["coreml"]
    assert "✓" not in lines["coreml"]
    assert f"Next: edgevit profile {bundle} -o report.html" in answer.out


def test_json(cli, bundle):
    answer = cli("verify", bundle, "--json")
    assert answer.code == 0
    found = answer.json()
    assert found["bundle"] == str(bundle) and found["failed"] == []
    status = {target: check["status"] for target, check in found["targets"].items()}
    assert status == dict.fromkeys(FILES, "passed") | {"coreml": "not_executed"}
    assert found["targets"]["onnx"]["error_over_spread"] <= 1e-4


@pytest.mark.parametrize("target", FILES)
def test_changed_bytes_are_named(cli, bundle, target):
    file = bundle / FILES[target]
    changed = file / "Data/com.apple.CoreML/weights/weight.bin" if target == "coreml" else file
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))
    answer = cli("verify", bundle, "--json")
    assert answer.code == 1
    assert answer.json()["error"].startswith(f"{file}: expected sha256 ")
    assert "the file changed since it was made; convert again or fetch it anew" in answer.err


def test_an_artefact_that_is_gone(cli, bundle):
    (bundle / "model.onnx").unlink()
    answer = cli("verify", bundle)
    assert answer.code == 1 and answer.out == ""
    assert f"{bundle / 'model.onnx'} is named by the manifest but is not there" in answer.err


@pytest.mark.parametrize("target", ["tflite", "executorch", "onnx"])
def test_a_corrupt_artefact_fails_with_its_reason_and_the_others_pass(cli, bundle, target):
    file = bundle / FILES[target]
    file.write_bytes(file.read_bytes()[:500])
    sign(bundle, target)
    answer = cli("verify", bundle, "--json")
    assert answer.code == 1
    found = answer.json()
    assert found["failed"] == [target]
    assert file.name in found["targets"][target]["reason"]
    assert "convert it again or fetch it anew" in found["targets"][target]["reason"]
    passed = [t for t, c in found["targets"].items() if c["status"] == "passed"]
    assert len(passed) == 2
    answer = cli("verify", bundle)
    (line,) = [line for line in answer.out.splitlines() if line.startswith(target)]
    assert answer.code == 1 and "✗ " in line and file.name in line and "Next" not in answer.out


def test_other_numbers_fail(cli, bundle, conversion):
    reference = bundle / "reference.npz"
    with np.load(conversion.bundle / "reference.npz") as arrays:
        np.savez(reference, inputs=arrays["inputs"], outputs=arrays["outputs"] * 1.01)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text()) | {"reference_sha256": sha256_of(reference)}
    path.write_text(json.dumps(manifest))
    answer = cli("verify", bundle, "--json")
    assert answer.code == 1
    assert sorted(answer.json()["failed"]) == ["executorch", "onnx", "tflite"]
    assert "is above 0.0001" in answer.json()["targets"]["onnx"]["reason"]


def test_folders_that_are_no_bundle(cli, home):
    answer = cli("verify", "gone", "--json")
    assert answer.code == 2
    assert answer.json() == {
        "error": "expected a bundle (the folder `edgevit convert` writes): gone does not exist",
        "exit_code": 2,
    }
    answer = cli("verify", ".")
    assert answer.code == 2 and "has no manifest.json: it is not a bundle" in answer.err
    (home / "manifest.json").write_text("{}")
    answer = cli("verify", ".")
    assert answer.code == 2 and "expected schema_version 1, got None" in answer.err


@pytest.mark.parametrize("target", ["tflite", "executorch", "onnx"])
def test_a_session_says_which_input_it_takes(conversion, target):
    session = open_session(read_bundle(conversion.bundle).artifact_path(target))
    shape = session.input.shape
    for wrong, part in [
        (np.zeros([1, 3, 8, 8], np.float32), f"expected shape {shape} ("),
        (np.zeros(shape, np.float64), "expected dtype float32, got float64"),
    ]:
        with pytest.raises(Exception) as caught:
            session.run(wrong)
        assert part in str(caught.value) and caught.value.exit_code == 2
    session.close()

"""The zoo through the real command line, from a name to proven artefacts and a report."""

from __future__ import annotations

import json

import pytest
from cli_tools import FILES, TINY, edgevit, write_model

from runtime.bundle import check_bytes, read_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LIMIT_S = 1800
RUN_HERE = ["tflite", "executorch", "onnx"]


@pytest.mark.parametrize(
    ("model", "options"), [("shvit_s1", []), ("efficientformer_l1", ["--precision", "fp32"])]
)
def test_convert_verify_profile(tmp_path, model, options):
    answer = edgevit(
        *["convert", model, "--to", "all", "-o", "out", *options], cwd=tmp_path, timeout=LIMIT_S
    )
    assert answer.code == 0 and answer.err == "", answer.err
    rows = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    for target in RUN_HERE:
        assert "✓ error/spread" in rows[target] and FILES[target] in rows[target]
    assert "converted, not executed" in rows["coreml"] and "✓" not in rows["coreml"]
    assert "weights are random, seed 0: fit for latency, not for accuracy" in answer.out

    bundle = read_bundle(tmp_path / "out")
    check_bytes(bundle)
    artifacts = bundle.manifest.artifacts
    assert artifacts.keys() == FILES.keys() and bundle.manifest.failures == {}
    for target in RUN_HERE:
        check = artifacts[target].verification
        assert check.status == "passed" and check.inputs == 9
        assert check.error_over_spread <= 1e-4 and check.spread > 0.1
        assert artifacts[target].precision == "fp32"
    assert artifacts["coreml"].verification.status == "not_executed"
    assert artifacts["coreml"].precision == ("fp32" if options else "fp16")
    proof = bundle.manifest.reparam
    assert proof.nodes_after < proof.nodes_before and sum(proof.rules.values()) > 10
    assert proof.max_rel_float64 <= 1e-10 and proof.max_rel_float32 <= 1e-5

    answer = edgevit("verify", "out", cwd=tmp_path, timeout=LIMIT_S)
    assert answer.code == 0 and answer.err == "" and answer.out.count("✓") == len(RUN_HERE)

    words = ["--per-op", "--runs", 10, "-o", "report.html"]
    answer = edgevit("profile", "out", *words, cwd=tmp_path, timeout=LIMIT_S)
    assert answer.code == 0 and answer.err == ""
    assert "Report: report.html (numbers: report.json, report.csv)" in answer.out
    record = json.loads((tmp_path / "report.json").read_text())
    assert sorted(m["target"] for m in record["measurements"]) == sorted(RUN_HERE)
    assert [n["target"] for n in record["not_measured"]] == ["coreml"]
    with_ops = {m["target"] for m in record["measurements"] if m.get("ops")}
    assert with_ops == {"tflite", "onnx"}, "this ExecuTorch is built without its event tracer"
    assert (tmp_path / "report.csv").stat().st_size > 0
    assert "</html>" in (tmp_path / "report.html").read_text()


def test_pictures_of_bytes(tmp_path):
    """--input uint8: every engine takes the pixels of a camera as they are."""
    home = write_model(tmp_path)
    words = ["--to", "all", "--input", "uint8", "--precision", "fp32", "-o", "out", "--json"]
    answer = edgevit("convert", TINY, *words, cwd=home)
    assert answer.code == 0 and answer.err == "", answer.err
    manifest = read_bundle(home / "out").manifest
    pre = manifest.preprocessing
    assert (pre.input_dtype, pre.input_range) == ("uint8", (0.0, 255.0))
    for target in RUN_HERE:
        artifact = manifest.artifacts[target]
        assert artifact.input.dtype == "uint8"
        assert artifact.verification.error_over_spread <= 1e-4
    assert edgevit("verify", "out", cwd=home).code == 0

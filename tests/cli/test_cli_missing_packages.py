"""Packages that are not installed: verbs that can, work; the others name the extra."""

from __future__ import annotations

import re

import pytest
from cli_tools import TINY, edgevit, hide, write_model

CONVERTERS = ["torch", "torchvision", "executorch", "coremltools", "litert_torch", "onnx", "timm"]


@pytest.mark.parametrize(
    ("target", "package", "hidden"),
    [
        ("coreml", "coremltools", "coremltools"),
        ("tflite", "litert-torch", "litert_torch"),
        ("all", "torch", "torch"),
    ],
)
def test_convert_names_the_extra_before_any_work(tmp_path, target, package, hidden):
    home = write_model(tmp_path)
    words = ["convert", TINY, "--to", target, "-o", "new/out", "--json"]
    answer = edgevit(*words, cwd=home, env=hide(tmp_path / "site", hidden))
    assert answer.code == 2
    assert re.fullmatch(
        rf"converting to \w+ needs the package '{package}', which is not installed. "
        r"Install it with: pip install 'edgevit\[convert\]'",
        answer.json()["error"],
    )
    assert not (home / "new").exists()


@pytest.mark.parametrize("words", [["inspect", "shvit_s1"], ["models"]])
def test_other_verbs_that_need_torch(tmp_path, words):
    answer = edgevit(*words, cwd=tmp_path, env=hide(tmp_path / "site", *CONVERTERS))
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        "error: this verb needs the package 'torch', which is not installed. "
        "Install it with: pip install 'edgevit[convert]'\n"
    )


def test_a_device_without_torch_verifies_and_profiles(tmp_path, bundle):
    env = hide(tmp_path / "site", *CONVERTERS)
    answer = edgevit("verify", bundle, "--json", cwd=tmp_path, env=env)
    assert answer.code == 0 and answer.err == ""
    checks = answer.json()["targets"]
    assert {t for t, c in checks.items() if c["status"] == "passed"} == {"tflite", "onnx"}
    assert checks["executorch"]["status"] == "not_executed"
    assert "pip install 'edgevit[executorch]'" in checks["executorch"]["reason"]
    files = [bundle / "model.tflite", bundle / "model.pte"]
    words = ["--runs", 5, "-o", "page.html", "--json"]
    answer = edgevit("profile", *files, *words, cwd=tmp_path, env=env)
    assert answer.code == 0 and answer.err == ""
    found = answer.json()
    assert [m["target"] for m in found["measurements"]] == ["tflite"]
    (absent,) = found["not_measured"]
    assert "pip install 'edgevit[executorch]'" in absent["reason"]


def test_where_no_engine_is_installed_nothing_is_verified(tmp_path, bundle):
    hidden = hide(tmp_path / "site", *CONVERTERS, "onnxruntime", "ai_edge_litert")
    answer = edgevit("verify", bundle, cwd=tmp_path, env=hidden)
    assert answer.code == 1 and "✓" not in answer.out
    assert "Nothing was verified: no artefact ran here and passed" in answer.out
    assert "pip install 'edgevit[litert]'" in answer.out
    assert "pip install 'edgevit[onnx]'" in answer.out

"""`edgevit convert` on a tiny model: what it says, what it leaves."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cli_tools import FILES, TARGETS, temporary_folders

from edgevit.cli.convert import _show as show
from runtime.bundle import read_bundle
from runtime.manifest import Manifest


def test_json_is_the_only_thing_on_stdout_and_stderr_is_silent(conversion):
    found = conversion.answer.json()
    assert conversion.answer.err == ""
    assert found["failed"] == {} and found["bundle"] == "made/out"
    assert Manifest.model_validate(found["manifest"]).artifacts.keys() == set(TARGETS)


def test_every_target_is_proven_and_core_ml_says_that_it_is_not(conversion):
    manifest = Manifest.model_validate(conversion.answer.json()["manifest"])
    for target, artifact in manifest.artifacts.items():
        check = artifact.verification
        if target == "coreml":
            assert check.status == "not_executed" and check.error_over_spread is None
            assert check.reason == "converted, not executed: Core ML runs on macOS only"
        else:
            assert check.status == "passed" and check.inputs == 9
            assert check.error_over_spread <= 1e-4 and check.spread > 0.1


def test_the_bundle_is_all_that_is_left(conversion):
    names = {p.name for p in conversion.bundle.iterdir()}
    others = {"manifest.json", "reference.npz", "labels.txt", "config.yaml", "logs"}
    assert names == {*FILES.values(), *others}
    assert [p.name for p in conversion.bundle.parent.iterdir()] == ["out"]


def test_vendors_chatter_and_the_models_own_are_in_the_logs(conversion):
    logs = conversion.bundle / "logs"
    assert {p.stem for p in logs.iterdir()} == {*TARGETS, "model"}
    assert (logs / "tflite.log").stat().st_size > 0
    assert "the model's own chatter" in (logs / "model.log").read_text()


def test_permissions_are_those_of_any_new_folder(conversion):
    umask = os.umask(0)
    os.umask(umask)
    for path in [conversion.bundle, *conversion.bundle.rglob("*")]:
        plain = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == plain & ~umask, path


def test_a_person_reads_words_and_core_ml_gets_no_tick(conversion, capsys):
    """The table of the same conversion without --json."""
    show(read_bundle(conversion.bundle).manifest, Path("a [bundle]"), failed={})
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for target in ("tflite", "executorch", "onnx"):
        assert "✓ error/spread" in rows[target] and FILES[target] in rows[target]
    assert "converted, not executed: Core ML runs on macOS" in rows["coreml"]
    assert "model.mlpackage" in rows["coreml"] and "✓" not in rows["coreml"]
    assert "Wrote a [bundle] in " in out
    assert "Next: edgevit profile 'a [bundle]' -o report.html" in out


def test_a_target_that_cannot_lower_fails_alone_and_force_replaces(cli, home):
    old = home / "out"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"edgevit_version": "0.0"}))
    (old / "model.tflite").write_text("of the old bundle")
    words = ["--to", "coreml,onnx", "-o", "out", "--force"]
    answer = cli("convert", "tinynet:bicubic", *words)
    assert answer.code == 1 and answer.err == "" and "chatter" not in answer.out
    rows = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    assert "✓ error/spread" in rows["onnx"] and "model.onnx" in rows["onnx"]
    assert "coreml failed: lower: " in answer.out and "upsample_bicubic2d" in answer.out
    assert "(log: out/logs/coreml.log)" in answer.out
    assert "upsample_bicubic2d" in (old / "logs" / "coreml.log").read_text()
    manifest = read_bundle(old).manifest
    assert manifest.failures.keys() == {"coreml"} and manifest.artifacts.keys() == {"onnx"}
    failure = manifest.failures["coreml"]
    assert (failure.stage, failure.log) == ("lower", "logs/coreml.log")
    assert manifest.artifacts["onnx"].verification.status == "passed"
    assert not (old / "model.mlpackage").exists() and not (old / "model.tflite").exists()
    assert temporary_folders(home) == []


@pytest.mark.slow
def test_no_target_at_all_is_a_failed_check_with_the_reasons(cli, home):
    answer = cli("convert", "tinynet:bicubic", "--to", "coreml", "-o", "new/out", "--json")
    assert answer.code == 1
    assert "no target converted:\n  coreml (lower): " in answer.err
    assert "    | " in answer.err, "the end of the log"
    assert answer.json()["exit_code"] == 1
    assert not (home / "new").exists()

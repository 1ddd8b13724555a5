"""`edgevit convert` on a tiny model: what it says, what it leaves."""

from __future__ import annotations

import json
import os
import stat

from cli_tools import FILES, TARGETS, TINY, temporary_folders

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


def test_a_person_reads_words_and_force_replaces(cli, home):
    old = home / "a bundle"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"edgevit_version": "0.0"}))
    (old / "model.tflite").write_text("of the old bundle")
    answer = cli("convert", TINY, "--to", "coreml", "-o", "a bundle", "--force")
    assert answer.code == 0, answer.err
    assert answer.err == "" and "chatter" not in answer.out
    (row,) = [line for line in answer.out.splitlines() if line.startswith("coreml")]
    assert "model.mlpackage" in row and "converted, not executed: Core ML runs on macOS" in row
    assert "✓" not in answer.out
    assert "Next: edgevit profile 'a bundle' -o report.html" in answer.out
    assert not (old / "model.tflite").exists() and (old / "model.mlpackage").exists()
    assert temporary_folders(home) == []


def test_a_target_that_cannot_lower_fails_alone(cli, home):
    answer = cli("convert", "tinynet:bicubic", "--to", "coreml,onnx", "-o", "out")
    assert answer.code == 1
    rows = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    assert "✓ error/spread" in rows["onnx"] and "model.onnx" in rows["onnx"]
    assert "coreml failed: lower: " in answer.out and "upsample_bicubic2d" in answer.out
    log = home / "out" / "logs" / "coreml.log"
    assert "(log: out/logs/coreml.log)" in answer.out
    assert "upsample_bicubic2d" in log.read_text()
    manifest = Manifest.model_validate_json((home / "out" / "manifest.json").read_text())
    assert manifest.failures.keys() == {"coreml"} and manifest.artifacts.keys() == {"onnx"}
    failure = manifest.failures["coreml"]
    assert (failure.stage, failure.log) == ("lower", "logs/coreml.log")
    assert manifest.artifacts["onnx"].verification.status == "passed"
    assert not (home / "out" / "model.mlpackage").exists()


def test_no_target_at_all_is_a_failed_check_with_the_reasons(cli, home):
    answer = cli("convert", "tinynet:bicubic", "--to", "coreml", "-o", "new/out", "--json")
    assert answer.code == 1
    assert "no target converted:\n  coreml (lower): " in answer.err
    assert "    | " in answer.err, "the end of the log"
    assert answer.json()["exit_code"] == 1
    assert not (home / "new").exists()

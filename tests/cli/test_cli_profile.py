"""`edgevit profile` and `edgevit report` on a real bundle. No claims about times."""

from __future__ import annotations

import csv
import json

import pytest

from runtime.run_files import load_run


@pytest.fixture(scope="module")
def run_json(conversion, tmp_path_factory):
    """A run of two artefacts, measured once."""
    from cli_tools import edgevit

    folder = tmp_path_factory.mktemp("profile")
    words = ["--runs", 20, "--per-op", "-o", "page.html", "--json"]
    files = [conversion.bundle / "model.tflite", conversion.bundle / "model.onnx"]
    answer = edgevit("profile", *files, *words, cwd=folder)
    assert answer.code == 0 and answer.err == "", answer.err
    return folder, answer.json()


def test_page_numbers_and_samples(run_json):
    folder, found = run_json
    assert sorted(p.name for p in folder.iterdir()) == ["page.csv", "page.html", "page.json"]
    assert found["report"] == "page.html" and found["kind"] == "edgevit-run"
    record = load_run(folder / "page.json")
    assert [m.target for m in record.measurements] == ["tflite", "onnx"]
    for measurement in record.measurements:
        assert measurement.model == "tinynet:net" and measurement.ops
        assert measurement.verification.status == "passed"
    with (folder / "page.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(b) for m in record.measurements for b in m.samples_ms) >= 40
    assert (folder / "page.html").read_text().startswith("<!doctype html>")


def test_report_of_runs(cli, home, run_json):
    run = run_json[0] / "page.json"
    answer = cli("report", run, run, "-o", "both.html")
    assert answer.code == 0 and answer.err == ""
    assert "Report: both.html" in answer.out and "tinynet:net tflite fp32" in answer.out
    assert "<html" in (home / "both.html").read_text()
    answer = cli("report", run, "-o", "one.html", "--json")
    assert answer.err == ""
    assert answer.json()["report"] == "one.html" and answer.json()["runs"] == 1


def test_changed_bytes_are_not_measured(cli, bundle):
    for name in ("model.onnx", "model.tflite"):
        (bundle / name).write_bytes(b"other")
    answer = cli("profile", bundle / "model.onnx", bundle / "model.tflite", "--json")
    assert answer.code == 1 and answer.err == ""
    found = answer.json()
    assert found["measurements"] == []
    for absent, name in zip(found["not_measured"], ["model.onnx", "model.tflite"], strict=True):
        assert absent["file"] == name
        assert absent["reason"].startswith(f"{bundle / name}: expected sha256 ")
        assert "the file changed since it was made" in absent["reason"]
    answer = cli("profile", bundle / "model.onnx")
    assert answer.code == 1 and "was not measured: " in answer.out
    assert "changed since it was made" in " ".join(answer.out.split())


def test_a_corrupt_file_is_not_measured(cli, home):
    (home / "net.onnx").write_bytes(b"not a model")
    answer = cli("profile", "net.onnx", "--json")
    assert answer.code == 1
    (absent,) = answer.json()["not_measured"]
    assert absent["reason"].startswith("ONNX Runtime cannot load net.onnx: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "no such bundle or artefact: gone"),
        (["."], "has no manifest.json: it is not a bundle"),
        (["tinynet.py"], "no engine opens 'tinynet.py': expected one of .tflite, .onnx, .pte"),
        (["gone", "-o", "page.pdf"], "-o expects a page name ending in .html, got 'page.pdf'"),
        (["gone", "-o", "no/page.html"], "the folder of the report does not exist: "),
        (["gone", "-o", "folder.html"], "-o expects a page to write, folder.html is a folder"),
    ],
)
def test_wrong_profile_words(cli, home, words, message):
    (home / "folder.html").mkdir()
    answer = cli("profile", *words)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("error: ") and message in answer.err
    answer = cli("profile", *words, "--json")
    assert message in answer.json()["error"]


def test_a_bundle_where_every_target_failed(cli, bundle):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"artifacts": {}}))
    answer = cli("profile", bundle)
    assert answer.code == 2
    assert f"{bundle}: every target failed to convert, nothing to profile" in answer.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read run.json: No such file or directory"),
        ("[1, 2]", "run.json is not a run file: expected the JSON of `edgevit profile`"),
        ('{"kind": "other"}', "run.json is not a run file: expected the JSON of `edgevit profile`"),
        ("{", "run.json is not JSON ("),
        ('{"kind": "edgevit-run", "schema_version": 99}', "it was made by a newer edgevit"),
        ('{"kind": "edgevit-run", "schema_version": 1}', "run.json: field "),
    ],
)
def test_reports_of_what_is_no_run(cli, home, content, message):
    if content is not None:
        (home / "run.json").write_text(content)
    answer = cli("report", "run.json", "-o", "page.html", "--json")
    assert answer.code == 2
    assert message in answer.json()["error"] and answer.err.startswith("error: ")
    assert not (home / "page.html").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page", "-o expects a page name ending in .html, got 'page'"),
        ("no/page.html", "the folder of the report does not exist: "),
    ],
)
def test_wrong_report_words(cli, run_json, out, message):
    answer = cli("report", run_json[0] / "page.json", "-o", out)
    assert answer.code == 2 and message in answer.err

"""The command line itself: help, usage errors, terminals of all kinds."""

from __future__ import annotations

import pytest
from cli_tools import edgevit, hide, start

from edgevit import __version__

VERBS = [
    "agent",
    "convert",
    "devices",
    "eval",
    "inspect",
    "models",
    "partition",
    "predict",
    "profile",
    "report",
    "slim",
    "train",
    "verify",
]
HEAVY = [
    "torch",
    "numpy",
    "pydantic",
    "altair",
    "jinja2",
    "timm",
    "sklearn",
    "onnxruntime",
    "coremltools",
    "executorch",
    "litert_torch",
    "ai_edge_litert",
]


def test_help_lists_every_verb_and_needs_no_package(tmp_path):
    answer = edgevit("--help", cwd=tmp_path, env=hide(tmp_path / "site", *HEAVY, "click"))
    assert answer.code == 0 and answer.err == ""
    for verb in VERBS:
        assert f"│ {verb} " in answer.out
    assert "--json" in answer.out and "--debug" in answer.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(cli, verb):
    answer = cli(verb, "--help")
    assert answer.code == 0 and answer.err == ""
    assert f"edgevit {verb} [OPTIONS]" in answer.out and "--json" in answer.out


def test_no_words_show_the_help(cli):
    answer = cli()
    assert answer.code == 2 and "Usage: edgevit" in answer.out


def test_version(cli):
    assert cli("--version").out == f"edgevit {__version__}\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["profil"], ["'profil'", "'profile'?", "See: edgevit --help"]),
        (["convert"], ["Missing argument 'model'", "See: edgevit convert --help"]),
        (["convert", "shvit_s1"], ["Missing option", "-o", "See: edgevit convert --help"]),
        (["convert", "x", "-o", "y", "--prec"], ["--prec", "See: edgevit convert --help"]),
        (["convert", "x", "-o", "y", "--size", "big"], ["--size", "See: edgevit convert --help"]),
        (["profile"], ["Missing argument 'paths", "See: edgevit profile --help"]),
        (["profile", "x", "--runs", "0"], ["--runs", " 1", "See: edgevit profile --help"]),
        (["verify", "x", "--threads", "0"], ["--threads", " 1", "See: edgevit verify --help"]),
    ],
)
def test_wrong_usage_points_to_the_help(cli, words, parts):
    """The words before 'See' are typer's, and differ between its versions."""
    answer = cli(*words)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1
    for part in parts:
        assert part.lower() in answer.err.lower()


def test_wrong_usage_as_json(cli):
    answer = cli("convert", "--json")
    assert answer.code == 2
    assert answer.json() == {"error": answer.err.removeprefix("error: ").strip(), "exit_code": 2}


def test_usage_errors_need_no_click(tmp_path):
    """typer brings its own; the package `click` may be absent."""
    answer = edgevit("convert", cwd=tmp_path, env=hide(tmp_path / "site", "click"))
    assert answer.code == 2 and "missing argument 'model'." in answer.err.lower()


def test_a_fault_of_ours_says_so_and_debug_shows_it(tmp_path):
    env = hide(tmp_path / "site", "yaml")  # a package that every install has
    words = ["convert", "shvit_s1", "-o", "out"]
    answer = edgevit(*words, cwd=tmp_path, env=env)
    assert answer.code == 70
    assert "No module named 'yaml'" in answer.err
    assert "This is a fault of edgevit; run again with --debug" in answer.err
    out, err = start(*words, "--debug", cwd=tmp_path, env=env).communicate()
    assert out == "" and "Traceback (most recent call last)" in err


def test_a_terminal_without_unicode(bundle):
    """The dash before 'converted, not executed' is not in ASCII, nor is the tick."""
    env = hide(bundle / "site", "torch", "onnxruntime", "ai_edge_litert")
    env |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    answer = edgevit("verify", bundle, cwd=bundle, env=env)
    assert answer.code == 1 and "? converted, not executed" in answer.out


def test_a_reader_that_stops_reading(bundle):
    process = start("verify", bundle, "--json", cwd=bundle, env=hide(bundle / "site", "torch"))
    process.stdout.close()
    process.wait()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.returncode == 1

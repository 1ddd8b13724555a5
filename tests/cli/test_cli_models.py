"""`edgevit models` and `edgevit inspect`."""

from __future__ import annotations

import pytest
from cli_tools import TINY

from edgevit.models import list_models


def test_the_zoo_as_a_table(cli):
    answer = cli("models", "shvit_*")
    assert answer.code == 0 and answer.err == ""
    for name in list_models("shvit_*"):
        assert name in answer.out
    assert "efficientformer" not in answer.out
    assert "Next: edgevit convert shvit_s1 --to all -o out" in answer.out


def test_the_zoo_as_json(cli):
    answer = cli("models", "--json")
    assert answer.err == ""
    assert [m["name"] for m in answer.json()["models"]] == list_models()


def test_a_pattern_that_matches_nothing(cli):
    answer = cli("models", "shvit_9")
    assert answer.code == 2 and answer.out == ""
    assert "no model matches 'shvit_9'; did you mean shvit_s" in answer.err
    answer = cli("models", "zzz")
    assert "no model matches 'zzz'; `edgevit models` lists all" in answer.err


def test_inspect_for_a_person(cli):
    answer = cli("inspect", TINY)
    assert answer.code == 0 and answer.err == ""
    assert f"{TINY}: input [1, 3, 32, 32], 10 classes" in answer.out
    assert "1 x batch norm into the linear map before it" in answer.out
    for target in ("coreml", "tflite", "executorch", "onnx"):
        assert f"{target:<11}nothing known" in answer.out
    assert f"Next: edgevit convert {TINY} --to all -o out" in answer.out
    assert "chatter" not in answer.out


def test_inspect_at_another_size(cli):
    answer = cli("inspect", "shvit_s1", "--size", 256, "--json")
    assert answer.code == 0 and answer.err == ""
    found = answer.json()
    assert found["input_shape"] == [1, 3, 256, 256] and found["classes"] == 1000
    proof = found["proof"]
    assert proof["nodes_after"] < proof["nodes_before"]
    assert proof["max_rel_float64"] <= proof["gate_float64"]
    assert sum(layer["params"] for layer in found["layers"]) == proof["params_before"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shvit_s11"], "unknown model 'shvit_s11'; did you mean shvit_s1"),
        (["tinynet:bicubic", "--size", 0], "--size must be a positive number of pixels, got 0"),
        (["tinynet:broken"], "ValueError: the weights of [/this] model are elsewhere"),
    ],
)
def test_inspect_of_what_is_no_model(cli, words, message):
    answer = cli("inspect", *words, "--json")
    assert answer.code == 2
    assert message in answer.json()["error"] and message in answer.err


def test_inspect_says_what_a_target_does_not_take(cli):
    answer = cli("inspect", "tinynet:bicubic")
    assert answer.code == 0
    assert "1 x upsample_bicubic2d: coremltools 9.0 does not convert it" in answer.out

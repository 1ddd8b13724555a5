"""`edgevit models` and `edgevit inspect`."""

from __future__ import annotations

import re
from itertools import groupby

import pytest
from cli_tools import ROOT, TINY

from edgevit.models import list_models, model_config


def test_the_zoo_as_a_table(cli):
    answer = cli("models", "shvit_*")
    assert answer.code == 0 and answer.err == ""
    for name in list_models("shvit_*"):
        assert name in answer.out
    assert "efficientformer" not in answer.out
    assert "Next: edgevit convert shvit_s1 --to all -o out" in answer.out


def test_every_model_has_a_line_with_its_figures_and_their_sources(cli):
    out = cli("models").out
    table, legend = out.split("\nParams and MACs")
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    sources = dict(re.findall(r"^\[(\d+)\] (.+)$", legend, re.MULTILINE))
    for name in list_models():
        config = model_config(name)
        words = rows[name].split()
        assert words[1:3] == [f"{config.params_m:.2f}", f"{config.macs_g:.3f}"], name
        side = f"x{config.size_multiple}" if config.size_multiple > 1 else "any"
        assert f" {config.input_size}, {side} " in rows[name]
        if config.top1 is None:
            assert "–" in rows[name]
        else:
            number = re.search(rf" {config.top1:.1f} \[(\d+)\]", rows[name])
            assert number and sources[number[1]] == config.top1_source
    first = rows["efficientformer_l1"]
    number = re.search(r"1\.6 ms iPhone 12, Core ML \[(\d+)\]", first)
    assert number and sources[number[1]] == "EfficientFormer README"
    assert len(set(sources.values())) == len(sources)


def test_families_stand_together_in_natural_order(cli):
    names = [m["name"] for m in cli("models", "--json").json()["models"]]
    assert sorted(names) == sorted(list_models())
    families = [model_config(name).family for name in names]
    runs = [family for family, _ in groupby(families)]
    assert len(runs) == len(set(runs)), "a family is torn apart"
    for family in runs:
        inside = [name for name in names if model_config(name).family == family]
        assert inside == [name for name in list_models() if name in inside]
    lines = [line.split()[0] for line in cli("models").out.splitlines() if line.strip()]
    assert [line for line in lines if line in names] == names


def test_the_zoo_as_json(cli):
    answer = cli("models", "efficientformer_l1", "--json")
    assert answer.err == ""
    (model,) = answer.json()["models"]
    assert model["name"] == "efficientformer_l1" and model["input_size"] == 224
    assert model["top1"] == 80.2 and model["top1_source"].startswith("EfficientFormer README")
    assert model["latencies"][0] == {
        "what": "iPhone 12, Core ML",
        "ms": 1.6,
        "source": "EfficientFormer README",
    }


def test_the_docs_name_every_model_and_no_other():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = text.split("\n## The zoo\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    named = {
        family: sorted(" ".join(re.findall("`(.+?)`", names)).split()) for family, names in rows
    }
    zoo = {}
    for name in list_models():
        zoo.setdefault(model_config(name).family, []).append(name)
    assert named == {family: sorted(names) for family, names in zoo.items()}


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

"""`edgevit convert` and `inspect` of a .pt2 file, of another class count, and of what cannot be."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from cli_tools import TINY, temporary_folders
from helpers import randomise

from converters.source import load_source
from edgevit.models import create_model
from runtime.bundle import read_bundle

GATED = """
import torch
from torch import nn

class Gate(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def program(home):
    """tinynet with its normalisation inside, as somebody exported it."""
    model = load_source(TINY).module
    program = torch.export.export(model, (torch.rand(1, 3, 32, 32),))
    torch.export.save(program, home / "net.pt2")
    return model


def test_a_program_converts_with_a_note(cli, home, program):
    answer = cli("convert", "net.pt2", "--to", "onnx", "-o", "out")
    assert (answer.code, answer.err) == (0, ""), answer.err
    assert "✓ error/spread" in answer.out
    assert "a .pt2 file tells no mean and std" in answer.out
    manifest = read_bundle(home / "out").manifest
    assert (manifest.model.ref, manifest.model.weights) == ("net.pt2", "net.pt2")
    assert manifest.model.trained and manifest.classes == 10
    (note,) = manifest.model.notes
    assert note.startswith("a .pt2 file tells no mean and std")
    assert manifest.preprocessing.mean == [0.0] * 3 and manifest.preprocessing.height == 32
    config = yaml.safe_load((home / "out" / "config.yaml").read_text())
    source = load_source(config["model"], weights=config["weights"], size=config["size"][0])
    assert source.weights_sha256 == config["weights_sha256"]


def test_a_program_is_inspected(cli, program):
    found = cli("inspect", "net.pt2", "--json").json()
    assert (found["classes"], found["input_shape"]) == (10, [1, 3, 32, 32])
    assert found["proof"]["rules"]["batch norm into the linear map before it"] == 1
    assert sum(layer["params"] for layer in found["layers"]) == sum(
        value.numel() for value in program.parameters()
    )
    assert "note: a .pt2 file tells no mean and std" in cli("inspect", "net.pt2").out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["net.pt2", "--size", "48"], "exported for pictures of 32 x 32 and --size says 48"),
        (["net.pt2", "--classes", "10"], "class count inside: leave --classes 10 out"),
        (["net.pt2", "--weights", "w.pth"], "has its weights inside, --weights w.pth"),
        (["gone.pt2"], "gone.pt2 does not exist: expected a file that torch.export.save wrote"),
        (["half.pt2"], "half.pt2 is no readable torch.export file"),
        (["text.pt2"], "text.pt2 is no readable torch.export file"),
        (
            ["gated:net"],
            "torch.export cannot export 'gated:net': module 1 (Gate), gated.py:7: `return x if",
        ),
    ],
)
def test_one_clear_error(cli, home, program, words, part):
    (home / "gated.py").write_text(GATED)
    (home / "text.pt2").write_text("no program")
    (home / "half.pt2").write_bytes((home / "net.pt2").read_bytes()[:5000])
    answer = cli("convert", *words, "--to", "onnx", "-o", "new/out", "--json")
    assert answer.code == 2 and part in answer.err and answer.err.count("error: ") == 1
    assert answer.json() == {"error": answer.err.removeprefix("error: ").strip(), "exit_code": 2}
    assert not (home / "new").exists() and temporary_folders(home) == []


@pytest.mark.slow
def test_a_new_head_is_told_everywhere(cli, home):
    model = randomise(create_model("shvit_s1", num_classes=6), 3)
    torch.save(model.state_dict(), home / "six.pth")
    words = ["--weights", "six.pth", "--classes", 4, "--size", 64, "--to", "onnx", "-o", "out"]
    answer = cli("convert", "shvit_s1", *words)
    assert (answer.code, answer.err) == (0, ""), answer.err
    note = "head re-initialised: the file has 6 classes, the model 4"
    assert f"note: {note}" in answer.out and "the head is random" in answer.out
    manifest = json.loads((home / "out" / "manifest.json").read_text())
    assert manifest["model"]["notes"] == [note]
    assert (manifest["model"]["weights"], manifest["model"]["trained"]) == ("six.pth", False)
    assert manifest["artifacts"]["onnx"]["verification"]["status"] == "passed"

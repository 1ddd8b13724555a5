"""A network.yaml through every verb that takes a model."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import yaml

from converters.refs.network_file import write_network
from converters.source import load_source
from edgevit.data import open_dataset
from edgevit.models.efficientformer import EfficientFormerShape
from runtime.bundle import read_bundle
from runtime.manifest import Preprocessing

SHAPE = EfficientFormerShape((16, 16, 16, 16), (1, 1, 1, 2), (0, 0, 0, 1))
NETWORK = "slim/network.yaml"


@pytest.fixture
def network(home):
    (home / "slim").mkdir()
    write_network(
        home / NETWORK, SHAPE, input_size=32, classes=10, made_from="efficientformer_l1",
        preprocessing=Preprocessing(
            mean=[0.5] * 3, std=[0.5] * 3, height=32, width=32, crop_pct=1.0,
            interpolation="bicubic",
        ),
    )  # fmt: skip
    return NETWORK


@pytest.mark.slow
def test_trained_converted_and_evaluated(cli, home, network):
    data = open_dataset("digits", "train", size=32)
    np.savez(
        home / "some.npz", images=np.stack([data[i][0] for i in range(120)]),
        labels=np.array([data[i][1] for i in range(120)]),
    )  # fmt: skip
    words = ["--data", "some.npz", "--epochs", 1, "--batch", 32, "--threads", 1]
    trained = cli("train", network, *words, "-o", "ckpt")
    assert (trained.code, trained.err) == (0, ""), trained.err
    last = trained.out.splitlines()[-1]
    assert last.startswith(f"Next: edgevit convert {NETWORK} --weights ckpt/model.safetensors")
    following = shlex.split(last.removeprefix("Next: edgevit "))
    converted = cli(*following, "--to", "onnx")
    assert (converted.code, converted.err) == (0, ""), converted.err
    manifest = read_bundle(home / "ckpt-bundle").manifest
    assert (manifest.model.ref, manifest.model.family) == (NETWORK, "efficientformer")
    assert manifest.model.trained and manifest.preprocessing.mean == [0.5] * 3
    config = yaml.safe_load((home / "ckpt-bundle" / "config.yaml").read_text())
    again = load_source(
        str(home / config["model"]), weights=home / config["weights"], size=config["size"][0],
        classes=config["classes"],
    )  # fmt: skip
    assert again.weights_sha256 == config["weights_sha256"] == manifest.model.weights_sha256
    # The torch side of a bundle is found again through its reference.
    found = cli("eval", "ckpt-bundle", "--data", "some.npz", "--json").json()
    scores = {each["name"]: each for each in found["results"]}
    assert scores["torch"]["status"] == scores["onnx"]["status"] == "evaluated"
    alone = cli("eval", network, "--weights", "ckpt/model.safetensors", "--data", "some.npz")
    assert alone.code == 0, alone.err
    resumed = cli("train", network, *words, "-o", "ckpt", "--resume", "--json")
    assert resumed.code == 0 and resumed.json()["epochs"] == 1


def test_it_is_inspected(cli, network):
    found = cli("inspect", network, "--json")
    assert found.code == 0, found.err
    told = found.json()
    assert (told["ref"], told["classes"], told["input_shape"]) == (NETWORK, 10, [1, 3, 32, 32])
    params = sum(value.numel() for value in SHAPE.build(10, 32).parameters())
    assert sum(layer["params"] for layer in told["layers"]) == params


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "--to", "onnx", "-o", "out"],
        ["inspect"],
        ["train", "--data", "digits", "-o", "out"],
        ["eval", "--data", "digits"],
    ],
    ids=["convert", "inspect", "train", "eval"],
)
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("slim/gone.yaml", "slim/gone.yaml does not exist: expected a network.yaml"),
        ("slim/half.yaml", "slim/half.yaml is damaged: field 'shape': Field required"),
        ("slim/odd.yaml", "slim/odd.yaml: depths of an EfficientFormer are 4 whole numbers"),
    ],
)
def test_one_clear_error(cli, home, network, words, file, said):
    data = yaml.safe_load((home / NETWORK).read_text())
    data["shape"]["depths"] = [1, 1, 0, 2]
    (home / "slim/odd.yaml").write_text(json.dumps(data))
    del data["shape"]
    (home / "slim/half.yaml").write_text(json.dumps(data))
    answer = cli(words[0], file, *words[1:], "--json")
    assert answer.code == 2 and said in answer.err and answer.err.count("error: ") == 1
    assert not (home / "out").exists()

"""`edgevit eval` on a bundle of every target, its artefacts alone, and torch models."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from cli_tools import CLASSES, FILES, TINY, edgevit, hide, write_model
from helpers import randomise, settle_batch_norm
from huggingface_hub import constants
from safetensors.torch import save_file

from edgevit.data import open_dataset, prepare
from runtime.digest import sha256_of, size_of

NAMES = [f"class {i}" for i in range(CLASSES)]
PICTURES = 120
RUN_HERE = ["executorch", "onnx", "tflite"]
CONVERTERS = ["torch", "torchvision", "executorch", "coremltools", "litert_torch", "onnx", "timm"]


def tiny(home, name="net"):
    """A model of tinynet.py, made without edgevit."""
    spec = importlib.util.spec_from_file_location("tinynet_alone", home / "tinynet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)().eval()


def save(path, images, labels, names=NAMES):
    np.savez(path, images=images, labels=labels, classes=np.array(names))
    return str(path)


@pytest.fixture(scope="session")
def truth(conversion, tmp_path_factory):
    """Data whose labels are torch's answer for two thirds; and how often torch is right."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (PICTURES, 5, 6, 3), dtype=np.uint8)
    images = coarse.repeat(9, axis=1).repeat(8, axis=2)  # 45 x 48, to be scaled and cropped
    model = tiny(conversion.home)
    mean = torch.tensor(model.pretrained_cfg["mean"])
    std = torch.tensor(model.pretrained_cfg["std"])
    x_BHWC = torch.from_numpy(np.stack([prepare(image, 32, 32) for image in images]))
    with torch.no_grad():
        logits = model(((x_BHWC - mean) / std).permute(0, 3, 1, 2)).numpy()
    said = np.argsort(-logits, axis=1)
    labels = np.where(np.arange(PICTURES) % 3 > 0, said[:, 0], said[:, 3])
    labels[: 2 * CLASSES] = np.arange(2 * CLASSES) % CLASSES  # every class has two pictures
    place = np.array([row.tolist().index(y) for row, y in zip(said, labels, strict=True)])
    path = tmp_path_factory.mktemp("truth") / "data.npz"
    save(path, images, labels)
    return str(path), int((place < 1).sum()), int((place < 5).sum())


def evaluated(answer):
    found = answer.json()
    return found, {result["name"]: result for result in found["results"]}


def test_a_bundle_on_every_engine_and_torch(conversion, truth):
    """By the real command line, in the folder of the model's own code."""
    data, top1, top5 = truth
    words = ["--data", data, "--split", "all", "--json"]
    answer = edgevit("eval", "made/out", *words, cwd=conversion.home)
    assert answer.code == 0 and answer.err == ""
    found, results = evaluated(answer)
    assert 30 < top1 < top5 < PICTURES
    assert sorted(results) == ["coreml", "executorch", "onnx", "tflite", "torch"]
    for name in ("torch", *RUN_HERE):
        result = results[name]
        assert result["status"] == "evaluated" and result["precision"] == "fp32"
        assert (result["top1"]["correct"], result["top5"]["correct"]) == (top1, top5)
        assert result["top1"]["of"] == PICTURES
        assert result["top1"]["low"] < result["top1"]["fraction"] < result["top1"]["high"]
    assert results["onnx"]["engine"] == "onnxruntime" and results["torch"]["engine"] == "torch"
    core_ml = results["coreml"]
    assert core_ml["status"] == "not_executed" and core_ml["top1"] is core_ml["top5"] is None
    assert "not executed here: Core ML runs on macOS only" in core_ml["reason"]
    pairs = {(a["first"], a["second"]): a for a in found["agreements"]}
    assert len(pairs) == 6
    assert all(a["same"] == a["of"] == PICTURES for a in pairs.values())
    assert found["labels"] == "class names are those of labels.txt" and found["trained"] is True


def test_the_table_for_a_person(cli, bundle, truth):
    data, top1, _ = truth
    answer = cli("eval", bundle, "--data", data, "--split", "all")
    assert answer.code == 0
    assert f"split all: {PICTURES} pictures, 10 classes; class names are those of" in answer.out
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    assert f"{top1 / PICTURES:.1%}".rstrip("%") in lines["tflite"]
    assert f"{PICTURES} of {PICTURES}" in lines["tflite"] and " to " in lines["tflite"]
    assert "same top-1 as torch" in answer.out
    assert "not executed here: Core ML runs on macOS only" in lines["coreml"]
    assert f"Among the others at least {PICTURES} of {PICTURES} agree" in answer.out
    assert f"Next: edgevit profile {bundle} -o report.html" in answer.out


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_an_artefact_alone_needs_no_torch(tmp_path, bundle, truth, target):
    data, top1, top5 = truth
    env = hide(tmp_path / "site", *CONVERTERS)
    words = ["--data", data, "--split", "all", "--json"]
    answer = edgevit("eval", bundle / FILES[target], *words, cwd=tmp_path, env=env)
    assert answer.code == 0 and answer.err == ""
    found, results = evaluated(answer)
    assert list(results) == [target] and found["labels"] == "class names are those of labels.txt"
    assert results[target]["top1"]["correct"] == top1
    assert results[target]["top5"]["correct"] == top5


def test_a_device_without_torch_evaluates_what_it_can(tmp_path, bundle, truth):
    env = hide(tmp_path / "site", *CONVERTERS)
    answer = edgevit("eval", bundle, "--data", truth[0], "--json", cwd=tmp_path, env=env)
    assert answer.code == 0
    found, results = evaluated(answer)
    status = {name: result["status"] for name, result in results.items()}
    assert status == dict.fromkeys(["torch", "coreml", "executorch"], "not_executed") | {
        "tflite": "evaluated", "onnx": "evaluated"
    }  # fmt: skip
    assert "pip install 'edgevit[convert]'" in results["torch"]["reason"]
    assert "pip install 'edgevit[executorch]'" in results["executorch"]["reason"]
    (pair,) = found["agreements"]
    assert (pair["first"], pair["second"]) == ("onnx", "tflite")


def test_only_core_ml_is_no_result(cli, bundle, truth):
    answer = cli("eval", bundle / "model.mlpackage", "--data", truth[0])
    assert answer.code == 1
    assert "not executed here: Core ML runs on macOS only" in answer.out
    assert "Nothing was evaluated" in answer.out and "Next" not in answer.out


def test_labels_in_another_order_stop_everything(cli, bundle, truth, tmp_path):
    with np.load(truth[0]) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    shuffled = save(tmp_path / "s.npz", images, labels, [*NAMES[1:], NAMES[0]])
    for subject in (bundle, bundle / "model.tflite"):
        answer = cli("eval", subject, "--data", shuffled, "--json")
        assert answer.code == 2
        assert "has the same classes as the data in another order" in answer.json()["error"]
    answer = cli("eval", bundle, "--data", "glyphs:11:5")
    assert answer.code == 2 and answer.out == ""
    assert "tells 10 classes apart and the data have 11 (0, 1, 2, ...)" in answer.err
    answer = cli("eval", bundle, "--data", "digits", "--limit", "5", "--json")
    assert answer.code == 0
    assert "class names could not be checked" in answer.json()["labels"]
    assert (answer.json()["pictures"], answer.json()["available"]) == (5, 359)


def test_other_code_and_other_weights_are_not_taken_for_the_bundles_own(cli, home, bundle, truth):
    text = (home / "tinynet.py").read_text()
    (home / "tinynet.py").write_text(text.replace("value.data *= 2", "value.data *= 3"))
    words = ["--data", truth[0], "--limit", "4", "--json"]
    answer = cli("eval", bundle, *words)
    assert answer.code == 0
    _, results = evaluated(answer)
    assert results["torch"]["status"] == "not_executed"
    assert "has other weights here than in the bundle" in results["torch"]["reason"]
    torch.save(tiny(home, "net").state_dict(), home / "other.pt")
    answer = cli("eval", bundle, *words, "--weights", "other.pt")
    assert answer.code == 2
    assert "other.pt are not the weights that" in answer.json()["error"]
    (home / "tinynet.py").write_text(text)
    torch.save(tiny(home).state_dict(), home / "own.pt")
    (home / "tinynet.py").write_text(text.replace("value.data *= 2", "value.data *= 3"))
    sys.modules.pop("tinynet", None)
    answer = cli("eval", bundle / "model.onnx", *words, "--weights", "own.pt")
    assert answer.code == 0
    _, results = evaluated(answer)
    assert [r["status"] for r in results.values()] == ["evaluated"] * 2
    (pair,) = answer.json()["agreements"]
    assert pair == {"first": "torch", "second": "onnx", "same": 4, "of": 4}


def test_weights_that_are_elsewhere(cli, home, bundle, truth):
    """A trained model whose checkpoint is not here: the artefacts still are."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["weights"] = "best.safetensors"
    path.write_text(json.dumps(manifest))
    words = ["eval", bundle, "--data", truth[0], "--limit", "4", "--json"]
    answer = cli(*words)
    assert answer.code == 0
    reason = evaluated(answer)[1]["torch"]["reason"]
    assert reason == "the weights 'best.safetensors' are not here; --weights FILE says where"
    torch.save(tiny(home).state_dict(), home / "best.pt")
    (bundle / "config.yaml").write_text("weights: best.pt\n")
    assert evaluated(cli(*words))[1]["torch"]["status"] == "evaluated"


def test_weights_of_the_hub_are_found_again(cli, home, bundle, truth, monkeypatch):
    """As the cache holds them, by the commit that the manifest names."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["weights"] = f"hf:someone/net@{commit}/model.safetensors"
    path.write_text(json.dumps(manifest))
    text = (home / "tinynet.py").read_text()
    state = tiny(home).state_dict()
    (home / "tinynet.py").write_text(text.replace("value.data *= 2", "value.data *= 3"))
    sys.modules.pop("tinynet", None)
    words = ["eval", bundle, "--data", truth[0], "--limit", "4", "--json"]
    torch_side = evaluated(cli(*words))[1]["torch"]
    assert torch_side["status"] == "not_executed"
    assert "HF_HUB_OFFLINE is set, and the cache" in torch_side["reason"]
    assert "give the file to --weights" in torch_side["reason"]
    snapshot = home / "cache" / "models--someone--net" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save_file(state, snapshot / "model.safetensors")
    found, results = evaluated(cli(*words))
    assert results["torch"]["status"] == "evaluated"
    assert {a["same"] for a in found["agreements"]} == {4}


def test_a_broken_artefact_fails_and_the_others_go_on(cli, bundle, truth):
    file = bundle / "model.tflite"
    file.write_bytes(file.read_bytes()[:500])
    answer = cli("eval", bundle, "--data", truth[0], "--json")
    assert answer.code == 1 and "the file changed since it was made" in answer.json()["error"]
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artifacts"]["tflite"] |= {"sha256": sha256_of(file), "size_bytes": size_of(file)}
    path.write_text(json.dumps(manifest))
    answer = cli("eval", bundle, "--data", truth[0], "--limit", "4", "--json")
    assert answer.code == 1
    _, results = evaluated(answer)
    assert results["tflite"]["status"] == "failed" and "tflite" in results["tflite"]["reason"]
    assert results["onnx"]["status"] == results["torch"]["status"] == "evaluated"
    answer = cli("eval", bundle, "--data", truth[0], "--limit", "4")
    assert answer.code == 1 and "✗" in answer.out


def test_a_model_by_its_name(cli, home, truth):
    data, top1, top5 = truth
    words = ["--data", data, "--split", "all", "--batch", "7", "--json"]
    answer = cli("eval", TINY, *words)
    assert answer.code == 0 and answer.err == ""
    _, results = evaluated(answer)
    assert results["torch"]["top1"]["correct"] == top1
    assert results["torch"]["top5"]["correct"] == top5
    answer = cli("eval", TINY, "--data", "glyphs:12:5")
    assert answer.code == 2 and "tells 10 classes apart and the data have 12" in answer.err
    torch.save(tiny(home).state_dict(), home / "w.pt")
    (home / "labels.txt").write_text("\n".join(reversed(NAMES)))
    answer = cli("eval", TINY, *words, "--weights", "w.pt")
    assert answer.code == 2 and "labels.txt has the same classes" in answer.json()["error"]
    (home / "labels.txt").write_text("\n".join(NAMES))
    answer = cli("eval", TINY, "--data", data, "--weights", "w.pt")
    assert answer.code == 0 and "class names are those of labels.txt" in answer.out
    given = "--weights w.pt --classes 10 --labels labels.txt"
    assert f"Next: edgevit convert {TINY} {given} --to all -o out" in answer.out


def test_a_model_of_the_zoo_gets_the_classes_of_the_data(cli, home):
    from edgevit.models import create_model, model_config

    words = ["--data", "glyphs:12:10", "--size", "32"]
    answer = cli("eval", "shvit_s1", *words, "--json")
    assert answer.code == 0
    found, _ = evaluated(answer)
    assert (found["classes"], found["pictures"], found["trained"]) == (12, 24, False)
    assert "the weights are random" in cli("eval", "shvit_s1", *words).out

    config = model_config("shvit_s1")
    dataset = open_dataset("glyphs:12:10", "test", size=32)
    crop = (32, 32, config.crop_pct, config.interpolation)
    x_BHWC = torch.from_numpy(np.stack([prepare(picture, *crop) for picture, _ in dataset]))
    x = ((x_BHWC - torch.tensor(config.mean)) / torch.tensor(config.std)).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    model = settle_batch_norm(randomise(create_model("shvit_s1", num_classes=12), 0), x)
    torch.save(model.state_dict(), home / "twelve.pth")
    with torch.no_grad():
        said = model(x).argmax(1).tolist()
    answer = cli("eval", "shvit_s1", *words, "--weights", "twelve.pth", "--json")
    found, results = evaluated(answer)
    right = sum(one == label for one, (_, label) in zip(said, dataset, strict=True))
    assert found["trained"] is True and results["torch"]["top1"]["correct"] == right
    answer = cli("eval", "shvit_s1", "--data", "digits", "--size", "32", "--weights", "twelve.pth")
    assert answer.code == 2 and "untrained head only guesses" in answer.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["shvit_s", "--data", "digits"], "did you mean shvit_s1"),
        (["gone/out", "--data", "digits"], "no such bundle or artefact: gone/out"),
        (["made/", "--data", "digits"], "has no manifest.json: it is not a bundle"),
        (["made", "--data", "digits"], "The folder made has no manifest.json"),
        ([TINY, "--data", "digts"], "Did you mean 'digits'?"),
        ([TINY, "--data", "digits", "--limit", "0"], "--limit"),
        ([TINY, "--data", "digits", "--split", "tset"], "Did you mean 'test'?"),
        ([TINY], "--data"),
    ],
)
def test_wrong_words(cli, home, words, part):
    (home / "made").mkdir()
    answer = cli("eval", *words)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.count("error: ") == 1 and part in answer.err


def test_the_bar_is_for_a_terminal_only(tmp_path, truth):
    home = write_model(tmp_path)
    answer = edgevit("eval", TINY, "--data", truth[0], cwd=home)
    assert answer.code == 0 and answer.err == ""

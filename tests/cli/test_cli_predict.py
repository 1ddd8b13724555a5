"""`edgevit predict` on a real bundle: numbers, words, devices without torch, bad pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_tools import CLASSES, FILES, SIZE, edgevit, hide
from PIL import Image

from runtime.sessions import open_session

CONVERTERS = ["torch", "torchvision", "executorch", "coremltools", "litert_torch", "onnx", "timm"]


def edit(bundle, **preprocessing):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"] |= preprocessing
    path.write_text(json.dumps(manifest))


@pytest.fixture
def photo(tmp_path):
    """A picture of waves in colour, 90 wide and 60 high."""
    y, x = np.mgrid[0:60, 0:90]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((3, 9), (7, 5), (20, 4))]
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(tmp_path / "waves.png")
    return tmp_path / "waves.png"


@pytest.fixture
def plain(tmp_path):
    Image.new("RGB", (40, 40), (200, 30, 60)).save(tmp_path / "plain.jpg")
    return tmp_path / "plain.jpg"


def expected(timm, file, photo, crop_pct, interpolation):
    """Softmax in float64 of what the engine gives for timm's own evaluation transform."""
    from timm.data import create_transform

    transform = create_transform(
        (3, SIZE, SIZE), crop_pct=crop_pct, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    with Image.open(photo) as picture:
        x_BCHW = transform(picture.convert("RGB"))[None].numpy()
    session = open_session(file)
    logits = session.run(x_BCHW)[0].astype(np.float64)
    session.close()
    share = np.exp(logits) / np.exp(logits).sum()
    return share, np.argsort(-share)


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(1.0, "bicubic"), (0.8, "bilinear")])
def test_the_manifests_preprocessing_as_timm_does_it(
    cli, bundle, photo, timm, crop_pct, interpolation
):
    edit(bundle, crop_pct=crop_pct, interpolation=interpolation)
    share, order = expected(timm, bundle / FILES["onnx"], photo, crop_pct, interpolation)
    for target in ("tflite", "onnx", "executorch"):
        words = [bundle, photo, "--target", target, "--top", 3, "--json"]
        answer = cli("predict", *words)
        assert answer.code == 0, answer.err
        found = answer.json()
        assert (found["target"], found["trained"], found["skipped"]) == (target, True, {})
        (one,) = found["predictions"]
        assert one["picture"] == str(photo)
        assert [g["index"] for g in one["top"]] == order[:3].tolist()
        assert [g["label"] for g in one["top"]] == [f"class {i}" for i in order[:3]]
        got = [g["probability"] for g in one["top"]]
        np.testing.assert_allclose(got, share[order[:3]], rtol=1e-3)


def test_the_crop_makes_a_difference(cli, bundle, photo):
    whole = cli("predict", bundle, photo, "--json").json()["predictions"][0]["top"]
    edit(bundle, crop_pct=0.5)
    middle = cli("predict", bundle, photo, "--json").json()["predictions"][0]["top"]
    assert abs(whole[0]["logit"] - middle[0]["logit"]) > 1e-3


def test_a_person_reads_a_table_and_the_next_command(cli, bundle, photo, plain):
    answer = cli("predict", bundle, photo, plain, "--top", 2)
    assert (answer.code, answer.err) == (0, "")
    assert "waves.png" in answer.out and "plain.jpg" in answer.out
    assert answer.out.index("waves.png") < answer.out.index("plain.jpg")
    rows = [line for line in answer.out.splitlines() if " % " in line]
    assert len(rows) == 4 and all("class " in row for row in rows)
    assert "tinynet:net tflite fp32 on litert " in answer.out
    assert "softmax of the logits" in answer.out
    assert f"Next: edgevit profile {bundle} -o report.html" in answer.out


def test_labels_with_brackets_and_random_weights_are_told(cli, bundle, photo):
    (bundle / "labels.txt").write_text("\n".join(f"[bold]{i}[/]" for i in range(CLASSES)))
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["trained"] = False
    path.write_text(json.dumps(manifest))
    answer = cli("predict", bundle, photo)
    assert answer.code == 0 and "[bold]" in answer.out
    assert "the weights are random: these classes mean nothing" in answer.out
    manifest["labels"] = None
    path.write_text(json.dumps(manifest))
    answer = cli("predict", bundle, photo)
    assert "class 1" in answer.out and "edgevit convert --labels FILE" in answer.out


@pytest.mark.slow
def test_an_uint8_artefact_takes_the_same_picture(cli, bundle, home, photo):
    words = ["--to", "onnx", "-o", "bytes", "--input", "uint8", "--json"]
    assert cli("convert", "tinynet:net", *words).code == 0
    tops = [
        cli("predict", path, photo, "--target", "onnx", "--json").json()["predictions"][0]["top"]
        for path in (bundle, home / "bytes")
    ]
    for one, other in zip(*tops, strict=True):
        assert one["index"] == other["index"]
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-4)


def test_an_artefact_file_alone(cli, bundle, photo, tmp_path):
    alone = tmp_path / "alone.tflite"
    alone.write_bytes((bundle / "model.tflite").read_bytes())
    answer = cli("predict", alone, photo)
    assert answer.code == 0 and "no manifest beside alone.tflite" in answer.out
    found = cli("predict", bundle / "model.tflite", photo, "--json").json()
    assert found["model"] == "tinynet:net" and found["predictions"][0]["top"][0]["label"]


def test_a_device_without_torch(tmp_path, bundle, photo):
    env = hide(tmp_path / "site", *CONVERTERS)
    for target in (None, "onnx"):
        words = ["--target", target] if target else []
        answer = edgevit("predict", bundle, photo, *words, "--json", cwd=tmp_path, env=env)
        assert (answer.code, answer.err) == (0, ""), answer.err
        assert answer.json()["target"] == (target or "tflite")
    words = ["--target", "executorch"]
    answer = edgevit("predict", bundle, photo, *words, cwd=tmp_path, env=env)
    assert answer.code == 2 and "pip install 'edgevit[executorch]'" in answer.err


def test_a_device_with_one_engine(tmp_path, bundle, photo):
    env = hide(tmp_path / "site", *CONVERTERS, "ai_edge_litert")
    answer = edgevit("predict", bundle, photo, cwd=tmp_path, env=env)
    assert answer.code == 0 and "onnx fp32 on onnxruntime" in answer.out
    assert "tflite left out: " in answer.out and "pip install 'edgevit[litert]'" in answer.out


def test_a_device_without_pillow(tmp_path, bundle, photo):
    env = hide(tmp_path / "site", "PIL", "torch")
    answer = edgevit("predict", bundle, photo, "--json", cwd=tmp_path, env=env)
    assert answer.code == 2
    assert answer.json()["error"].endswith("Install it with: pip install pillow")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["bundle", "gone.jpg"], "expected a picture: gone.jpg does not exist"),
        (["bundle", "."], "expected a picture: . is a folder"),
        (["bundle", "text.jpg"], "cannot read the picture text.jpg: "),
        (["bundle", "photo", "text.jpg"], "cannot read the picture text.jpg: "),
        (["gone", "photo"], "no such bundle or artefact: gone"),
        ([".", "photo"], "has no manifest.json: it is not a bundle"),
        (["bundle", "photo", "--target", "onxx"], "Did you mean 'onnx'?"),
        (["bundle", "photo", "--top", "0"], "See: edgevit predict --help"),
        (["bundle"], "See: edgevit predict --help"),
    ],
)
def test_mistakes(cli, home, bundle, photo, words, part):
    (home / "text.jpg").write_text("not a picture")
    places = {"bundle": bundle, "photo": photo}
    answer = cli("predict", *[places.get(word, word) for word in words], "--json")
    assert answer.code == 2 and part in answer.err and answer.err.count("error: ") == 1
    assert answer.json()["exit_code"] == 2

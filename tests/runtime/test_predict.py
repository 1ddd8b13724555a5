"""Guesses of a bundle: against torch's softmax, from the first artefact that runs, with labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import predict
from runtime.errors import CheckFailed, MissingExtra, RuntimeFault
from runtime.picture_file import read_picture
from runtime.predict import open_predictor, softmax

NAMES = ["cat", "dog", "[owl]", "emu", "gnu", "yak", "ape"]


@pytest.fixture
def labelled(make_bundle):
    """A bundle of three targets with labels."""

    def change(manifest):
        manifest["labels"] = "labels.txt"

    folder = make_bundle("tflite", "onnx", "executorch", change=change)
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    return folder


@pytest.mark.parametrize("target", ["tflite", "onnx", "executorch"])
def test_guesses_are_torchs(labelled, tiny, target):
    predictor = open_predictor(labelled, target)
    assert (predictor.target, predictor.session.engine_version != "") == (target, True)
    for picture, logits in zip(tiny.inputs_NHWC, tiny.outputs_NK, strict=True):
        share, order = torch.tensor(logits).double().softmax(0).topk(3)
        guesses = predictor.top(picture, 3)
        assert [g.index for g in guesses] == order.tolist()
        assert [g.label for g in guesses] == [NAMES[i] for i in order]
        np.testing.assert_allclose([g.probability for g in guesses], share, rtol=1e-3)
        np.testing.assert_allclose([g.logit for g in guesses], logits[order], rtol=1e-3, atol=1e-4)
    assert len(predictor.top(tiny.inputs_NHWC[0], 100)) == len(NAMES)
    assert sum(g.probability for g in predictor.top(tiny.inputs_NHWC[0], 100)) == pytest.approx(1)
    predictor.close()


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.float32([1e4, 1e4, -1e4])), [0.5, 0.5, 0], atol=1e-12)


def test_the_first_that_runs_answers(labelled, monkeypatch):
    assert open_predictor(labelled).target == "tflite"
    (labelled / "tiny.tflite").write_bytes(b"damaged")
    predictor = open_predictor(labelled)
    assert predictor.target == "onnx" and "tiny.tflite" in predictor.skipped["tflite"]

    def none_here(path, threads):
        raise MissingExtra(f"{path.suffix} needs an engine")

    monkeypatch.setattr(predict, "open_session", none_here)
    with pytest.raises(
        RuntimeFault, match=r"no artefact of .* runs here:\n  tflite: .tflite needs"
    ):
        open_predictor(labelled)
    with pytest.raises(MissingExtra, match=r"\.pte needs an engine"):
        open_predictor(labelled, "executorch")


def test_an_artefact_that_was_found_wrong_is_the_last_resort(make_bundle):
    def fail(manifest):
        manifest["artifacts"]["tflite"]["verification"] |= {"status": "failed", "reason": "nan"}

    folder = make_bundle("tflite", "onnx", change=fail)
    predictor = open_predictor(folder)
    assert predictor.target == "onnx"
    assert predictor.skipped == {"tflite": "its verification failed: nan"}
    asked = open_predictor(folder, "tflite")
    assert asked.notes == ["the verification of tflite failed: nan"] and asked.labels is None


def test_an_artefact_file_finds_its_bundle(labelled, tiny):
    predictor = open_predictor(labelled / "tiny.onnx")
    assert (predictor.target, predictor.model, predictor.labels) == ("onnx", "tiny", NAMES)
    assert predictor.trained is False and predictor.notes == []
    with pytest.raises(RuntimeFault, match=r"an artefact for onnx: leave --target tflite out"):
        open_predictor(labelled / "tiny.onnx", "tflite")


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_an_artefact_alone(tiny, tmp_path, target):
    file = tmp_path / f"alone{tiny.paths[target].suffix}"
    file.write_bytes(tiny.paths[target].read_bytes())
    predictor = open_predictor(file)
    pre = predictor.preprocessing
    assert (pre.height, pre.width, pre.crop_pct, predictor.trained) == (32, 32, 1.0, None)
    assert "no manifest beside alone" in predictor.notes[0]
    best = predictor.top(tiny.inputs_NHWC[0], 1)[0]
    assert (best.index, best.label) == (int(tiny.outputs_NK[0].argmax()), None)


def test_what_cannot_answer(labelled, tiny, tmp_path):
    with pytest.raises(RuntimeFault, match="no such bundle or artefact"):
        open_predictor(tmp_path / "gone")
    with pytest.raises(RuntimeFault, match=r"no engine opens 'a\.txt'"):
        (tmp_path / "a.txt").touch()
        open_predictor(tmp_path / "a.txt")
    with pytest.raises(RuntimeFault, match="Did you mean 'tflite'"):
        open_predictor(labelled, "tflit")
    (labelled / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(RuntimeFault, match=r"has 2 labels and tiny\.tflite 7 classes"):
        open_predictor(labelled).top(tiny.inputs_NHWC[0], 1)
    (labelled / "labels.txt").unlink()
    with pytest.raises(RuntimeFault, match="cannot read the labels"):
        open_predictor(labelled)


def test_no_numbers_no_guess(labelled, tiny):
    predictor = open_predictor(labelled)
    with pytest.raises(CheckFailed, match="answers with NaN or infinity"):
        predictor.top(np.full_like(tiny.inputs_NHWC[0], np.nan), 1)


# Pictures


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(rgb, tmp_path, orientation):
    """The eight orientations of EXIF 2.3: what the stored rows and columns show."""
    stored = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored))
    picture.save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png"), rgb)


def test_other_kinds_of_pictures(rgb, tmp_path):
    picture, file = Image.fromarray(rgb), tmp_path / "p.png"
    grey = np.asarray(picture.convert("L"))
    picture.convert("L").save(file)
    np.testing.assert_array_equal(read_picture(file), np.repeat(grey[..., None], 3, 2))
    glass = np.concatenate([rgb, np.full((24, 40, 1), 7, np.uint8)], axis=2)
    Image.fromarray(glass).save(file)
    np.testing.assert_array_equal(read_picture(file), rgb)
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    np.testing.assert_array_equal(read_picture(file), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey > 127).save(file)
    np.testing.assert_array_equal(read_picture(file)[..., 0], (grey > 127) * np.uint8(255))
    few = picture.quantize(16)
    few.save(file)
    np.testing.assert_array_equal(read_picture(file), np.asarray(few.convert("RGB")))
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    ink.save(tmp_path / "p.jpg")
    red = read_picture(tmp_path / "p.jpg")[4, 4].astype(int)
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "p.tiff")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.tiff")[..., 0], grey)


def test_pictures_that_are_none(rgb, tmp_path):
    file = tmp_path / "p.png"
    with pytest.raises(RuntimeFault, match=r"p\.png does not exist"):
        read_picture(file)
    with pytest.raises(RuntimeFault, match="is a folder"):
        read_picture(tmp_path)
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        whole = tmp_path / f"w.{suffix}"
        Image.fromarray(rgb).save(whole)
        data = whole.read_bytes()
        for broken in (b"", b"text", data[:30], data[: len(data) // 2]):
            file = Path(tmp_path / f"b.{suffix}")
            file.write_bytes(broken)
            with pytest.raises(RuntimeFault, match=re.escape(f"cannot read the picture {file}")):
                read_picture(file)

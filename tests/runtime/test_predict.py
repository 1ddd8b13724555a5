"""Guesses of a bundle: against torch's softmax, from the first artefact that runs, with labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime import predict
from runtime.errors import CheckFailed, MissingExtra, RuntimeFault
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
        RuntimeFault,
        match=r"no artefact of .* runs here:\n  tflite: .*the file changed.*\n  onnx: .onnx needs",
    ):
        open_predictor(labelled)
    with pytest.raises(MissingExtra, match=r"\.pte needs an engine"):
        open_predictor(labelled, "executorch")


def test_changed_bytes_do_not_answer(labelled):
    """Also where the engine would open them, and where the file is named by itself."""
    file = labelled / "tiny.tflite"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    for path, target in ((labelled, "tflite"), (file, None)):
        with pytest.raises(CheckFailed, match="the file changed since it was made"):
            open_predictor(path, target)


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
    for target in (None, "onnx"):
        with pytest.raises(RuntimeFault, match=r"^cannot read the labels: no such labels file"):
            open_predictor(labelled, target)


def test_no_numbers_no_guess(labelled, tiny):
    predictor = open_predictor(labelled)
    with pytest.raises(CheckFailed, match="answers with NaN or infinity"):
        predictor.top(np.full_like(tiny.inputs_NHWC[0], np.nan), 1)

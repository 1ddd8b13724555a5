"""Artefacts that no manifest describes, on the real engine: the mean colour as the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as Types
from onnx import helper

from edgevit.data import DataError
from edgevit.evaluation import EvalOptions, EvaluationError, evaluate
from runtime.errors import RuntimeFault

COLOURS = ("red", "green", "blue")


def write_model(path: Path, dtype: int, *nodes: onnx.NodeProto, side: int = 8) -> str:
    """(1, 3, side, side) of `dtype`, cast to float32 'x', through `nodes` to 'logits' (1, 3)."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["x"], to=Types.FLOAT), *nodes],
        "colours",
        [helper.make_tensor_value_info("image", dtype, [1, 3, side, side])],
        [helper.make_tensor_value_info("logits", Types.FLOAT, [1, 3])],
        [helper.make_tensor("axes", Types.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return str(path)


def mean(source: str = "x", to: str = "logits") -> onnx.NodeProto:
    return helper.make_node("ReduceMean", [source, "axes"], [to], keepdims=0)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """36 pictures; every third is labelled as another colour than it has."""
    rng = np.random.default_rng(0)
    colour = np.arange(36) % 3
    images = rng.integers(0, 100, (36, 10, 12, 3), dtype=np.uint8)
    images[np.arange(36), :, :, colour] += 100
    labels = np.where(np.arange(36) % 9 < 3, (colour + 1) % 3, colour)
    path = tmp_path / "colours.npz"
    np.savez(path, images=images, labels=labels, classes=np.array(COLOURS))
    return str(path)


@pytest.mark.parametrize("dtype", [Types.FLOAT, Types.UINT8])
def test_counted_right(tmp_path, data, dtype):
    model = write_model(tmp_path / "colours.onnx", dtype, mean())
    seen = []
    options = EvalOptions(split="all", batch=10)
    found = evaluate(model, data, options, lambda done, of: seen.append((done, of)))
    (result,) = found.results
    assert (result.name, result.status, result.engine) == ("onnx", "evaluated", "onnxruntime")
    assert (result.top1.correct, result.top1.of) == (24, 36)
    assert result.top5 is None, "five guesses of three classes are always right"
    assert seen == [(10, 36), (20, 36), (30, 36), (36, 36)]
    assert found.agreements == [] and found.trained is None
    assert "no manifest beside colours.onnx" in found.notes[0]
    assert "taken on trust" in found.labels


def test_bytes_go_in_as_they_are(tmp_path, data):
    """A uint8 model sees 0..255, a float32 one 0..1: the same threshold, 255 times as large."""
    limit = helper.make_node("Constant", [], ["limit"], value_float=120.0)
    for dtype, scale in ((Types.UINT8, 1.0), (Types.FLOAT, 255.0)):
        factor = helper.make_node("Constant", [], ["factor"], value_float=scale)
        scaled = helper.make_node("Mul", ["mean", "factor"], ["scaled"])
        over = helper.make_node("Greater", ["scaled", "limit"], ["over"])
        cast = helper.make_node("Cast", ["over"], ["logits"], to=Types.FLOAT)
        nodes = (limit, mean(to="mean"), factor, scaled, over, cast)
        model = write_model(tmp_path / f"over{scale}.onnx", dtype, *nodes)
        (result,) = evaluate(model, data, EvalOptions(split="all")).results
        assert result.top1.correct == 24


def test_a_limit_draws_from_the_whole_split_and_repeats(tmp_path, data):
    model = write_model(tmp_path / "colours.onnx", Types.FLOAT, mean())
    found = [evaluate(model, data, EvalOptions(split="all", limit=9)) for _ in range(2)]
    assert found[0] == found[1] and (found[0].pictures, found[0].available) == (9, 36)
    whole = evaluate(model, data, EvalOptions(split="all", limit=100))
    assert (whole.pictures, whole.available) == (36, 36)
    assert found[0].results[0].top1.correct not in (0, 9)


def test_not_a_number_is_a_failure_with_its_picture(tmp_path, data):
    """The mean over itself is 0 / 0 for a black picture."""
    with np.load(data) as arrays:
        changed = {**arrays, "images": arrays["images"].copy()}
    changed["images"][13] = 0
    np.savez(data, **changed)
    nodes = (mean(to="mean"), helper.make_node("Div", ["mean", "mean"], ["logits"]))
    model = write_model(tmp_path / "colours.onnx", Types.FLOAT, *nodes)
    (result,) = evaluate(model, data, EvalOptions(split="all", batch=5)).results
    assert result.status == "failed" and result.top1 is None
    assert result.reason == "NaN or infinite logits for picture 13"


def test_what_does_not_go_together(tmp_path, data):
    model = write_model(tmp_path / "colours.onnx", Types.FLOAT, mean())
    for options, part in (
        (EvalOptions(size=16), "have a fixed size, here 8 x 8: leave --size out"),
        (EvalOptions(classes=4), "--classes says 4 and the artefact has 3"),
        (EvalOptions(weights="w.pt"), "no manifest beside .* says which model it is"),
    ):
        with pytest.raises(EvaluationError, match=part):
            evaluate(model, data, options)
    with pytest.raises(EvaluationError, match="tells 3 classes apart and the data have 10"):
        evaluate(model, "digits")
    with pytest.raises(DataError, match="unknown split 'val'"):
        evaluate(model, data, EvalOptions(split="val"))
    for gone in ("gone.onnx", str(tmp_path / "gone.mlpackage")):
        with pytest.raises(EvaluationError, match="no such artefact: "):
            evaluate(gone, data)
    (tmp_path / "colours.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeFault, match=r"colours\.onnx"):
        evaluate(model, data)

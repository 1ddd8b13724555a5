"""Artefacts that take any number of rows: their sessions, and all that runs single pictures."""

from __future__ import annotations

import json
import mmap

import numpy as np
import pytest
import torch
from engine_tools import bundle_with, doubling
from onnx import TensorProto, helper, save
from torch import nn

from runtime.bundle import read_bundle
from runtime.check import verify_bundle
from runtime.digest import sha256_of
from runtime.errors import RuntimeFault
from runtime.inputs import random_input, to_input
from runtime.predict import open_predictor
from runtime.profile_items import items_from
from runtime.profiler import profile
from runtime.sessions import check_input, open_session
from runtime.tensor_spec import TensorSpec

SIZE, CLASSES = 32, 7
ANY = TensorSpec(name="image", shape=[-1, 4, 6, 3], dtype="float32", layout="NHWC")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, CLASSES)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x_BCHW)).mean((2, 3)))


@pytest.fixture(scope="module")
def pictures():
    x = np.random.default_rng(1).random((4, SIZE, SIZE, 3), dtype=np.float32)
    x[1] *= 0.2
    x[2, :, 8:] = 0
    return x


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pictures):
    """An .onnx file with a free batch, as torch exports it, and torch's answers to the pictures."""
    torch.manual_seed(3)
    model, path = Net().eval(), tmp_path_factory.mktemp("any") / "any.onnx"
    for parameter in model.parameters():
        parameter.data *= 3
    torch.onnx.export(
        model,
        (torch.rand(2, 3, SIZE, SIZE),),
        path,
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    with torch.no_grad():
        answers = model(torch.from_numpy(pictures).permute(0, 3, 1, 2)).numpy()
    return path, answers


@pytest.fixture
def bundle(make_bundle, exported, pictures):
    """A bundle whose only target takes any batch."""
    folder = bundle_with(make_bundle("onnx"), exported[0])
    np.savez(folder / "reference.npz", inputs=pictures, outputs=exported[1])
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["reference_sha256"] = sha256_of(folder / "reference.npz")
    file.write_text(json.dumps(manifest))
    return folder


def test_onnx_runs_any_batch(exported, pictures):
    path, answers = exported
    session = open_session(path)
    assert session.input.shape == [-1, 3, SIZE, SIZE] and session.input.layout == "NCHW"
    assert session.output.shape == [-1, CLASSES]
    x = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    for rows in (1, 4, 2, 3, 1):
        assert np.allclose(session.run(x[:rows]), answers[:rows], atol=1e-5)
    for wrong in (x[:0], x[:, 1:], x[0]):
        with pytest.raises(RuntimeFault, match=r"expected shape \[-1, 3, 32, 32\] \(NCHW\)"):
            session.run(wrong)


def test_onnx_with_a_fixed_batch_says_so(tmp_path):
    session = open_session(doubling(tmp_path / "four.onnx", batch=4))
    assert (session.input.shape, session.output.shape) == ([4, 2], [4, 2])
    with pytest.raises(RuntimeFault, match="expected shape"):
        session.run(np.zeros((3, 2), np.float32))


def test_onnx_whose_output_size_was_not_worked_out(tmp_path):
    """A free size at the output alone is the input's batch."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "relu.onnx"
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    assert open_session(path).output.shape == [1, 2]


def test_onnx_with_another_free_size_is_refused(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, "height", 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "free.onnx"
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    with pytest.raises(RuntimeFault, match="only the first size may be free, the batch"):
        open_session(path)


def test_litert_runs_any_batch(tmp_path):
    """litert-torch writes fixed sizes; the signature is what other converters write."""
    import flatbuffers
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()
    path = tmp_path / "any.tflite"
    litert_torch.convert(model, (torch.rand(1, 12),)).export(str(path))
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = file.subgraphs[0]
    for index in [*graph.inputs, *graph.outputs]:
        tensor = graph.tensors[index]
        tensor.shapeSignature = [-1, *tensor.shape[1:]]
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))

    session = open_session(path)
    assert (session.input.shape, session.output.shape) == ([-1, 12], [-1, CLASSES])
    for rows in (1, 3, 3, 2, 1):
        x = torch.rand(rows, 12)
        with torch.no_grad():
            assert np.allclose(session.run(x.numpy()), model(x).numpy(), atol=1e-5)


def test_check_input_takes_any_rows_but_none():
    check_input(np.zeros((5, 4, 6, 3), np.float32), ANY)
    for shape in ((0, 4, 6, 3), (1, 4, 6), (), (2, 4, 6, 4)):
        with pytest.raises(RuntimeFault, match=r"expected shape \[-1, 4, 6, 3\] \(NHWC\)"):
            check_input(np.zeros(shape, np.float32), ANY)


def test_one_picture_is_a_batch_of_one():
    assert random_input(ANY).shape == (1, 4, 6, 3)
    picture = np.random.default_rng(0).random((4, 6, 3), dtype=np.float32)
    assert np.array_equal(to_input(picture, ANY), picture[None])
    with pytest.raises(RuntimeFault, match=r"takes \[-1, 4, 6, 3\] \(NHWC\), the picture gives"):
        to_input(picture[1:], ANY)


@pytest.mark.parametrize("target", ["tflite", "onnx", "executorch"])
def test_arrays_in_memory_of_others(tiny, target):
    """Views into a mapping, as an engine process gets them."""
    x = tiny.input_for(target, 1)
    session = open_session(tiny.paths[target])
    expected = session.run(x)
    with mmap.mmap(-1, x.nbytes + 64) as memory:
        view = np.frombuffer(memory, x.dtype, x.size, 64).reshape(x.shape)
        view[...] = x
        got = session.run(view)
        view.flags.writeable = False
        again = session.run(view)
        del view
        memory[:] = bytes(len(memory))
    assert np.array_equal(got, expected) and np.array_equal(again, expected)


def test_the_manifest_keeps_the_free_batch(bundle):
    manifest = read_bundle(bundle).manifest
    assert manifest.artifacts["onnx"].input.shape == [-1, 3, SIZE, SIZE]
    again = json.loads(manifest.model_dump_json())["artifacts"]["onnx"]["input"]
    assert again == {
        "name": "image", "shape": [-1, 3, SIZE, SIZE], "dtype": "float32", "layout": "NCHW",
    }  # fmt: skip


def test_a_misspelt_field_of_a_tensor_is_an_error(bundle):
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["artifacts"]["onnx"]["input"]["lay_out"] = "NCHW"
    file.write_text(json.dumps(manifest))
    with pytest.raises(RuntimeFault, match=r"field 'artifacts\.onnx\.input\.lay_out'"):
        read_bundle(bundle)


def test_verify_predict_and_profile_run_single_pictures(bundle, pictures, exported):
    ((_, check),) = verify_bundle(bundle)
    assert check.status == "passed" and check.inputs == 4, check.reason
    predictor = open_predictor(bundle)
    best = predictor.top(pictures[1], 1)[0]
    predictor.close()
    assert best.index == int(exported[1][1].argmax())
    for path in (bundle, bundle / "tiny.onnx"):
        record = profile(items_from([path]), runs=20, min_time_s=0)
        assert record.not_measured == []
        assert record.measurements[0].input_shape == [1, 3, SIZE, SIZE]

"""The engines behind the Session protocol: real files, real engines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import MissingExtra, RuntimeFault
from runtime.sessions import coreml, engine_for, open_session
from runtime.sessions.base import import_engine

TARGETS = ["tflite", "onnx", "executorch"]
LAYOUT = {"tflite": "NHWC", "onnx": "NCHW", "executorch": "NCHW"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def test_run_equals_torch(tiny, target):
    session = open_session(tiny.paths[target])
    got = np.concatenate([session.run(tiny.input_for(target, i)) for i in range(4)])
    spread = np.ptp(tiny.outputs_NK, axis=0).max()
    assert spread > 0.1
    assert np.abs(got - tiny.outputs_NK).max() / spread < 1e-5


def test_spec_comes_from_the_engine(tiny, target):
    session = open_session(tiny.paths[target])
    assert session.input.shape == list(tiny.input_for(target).shape)
    assert session.input.layout == LAYOUT[target]
    assert session.input.dtype == "float32"
    assert session.output.shape == [1, 7]
    assert re.match(r"\d+\.\d+", session.engine_version)


def test_results_are_fresh_and_the_input_is_left_alone(tiny, target):
    session = open_session(tiny.paths[target])
    x = tiny.input_for(target, 0).copy()
    x.flags.writeable = False
    first = session.run(x)
    kept = first.copy()
    second = session.run(tiny.input_for(target, 1))
    assert not np.array_equal(kept, second)
    assert np.array_equal(first, kept)
    first[:] = 0
    assert np.array_equal(session.run(x), kept)


def test_transposed_view_runs_as_its_values_say(tiny, target):
    """A view that is not contiguous in memory must not be read as if it were."""
    session = open_session(tiny.paths[target])
    x = tiny.input_for(target, 2)
    view = np.asfortranarray(x)
    assert not view.flags.c_contiguous
    assert np.array_equal(session.run(view), session.run(x))


def test_wrong_shape_and_dtype_say_what_was_expected(tiny, target):
    session = open_session(tiny.paths[target])
    x = tiny.input_for(target)
    with pytest.raises(RuntimeFault, match=re.escape(f"expected shape {list(x.shape)}")):
        session.run(x[:, 1:])
    with pytest.raises(RuntimeFault, match="expected dtype float32, got float64"):
        session.run(x.astype(np.float64))
    with pytest.raises(RuntimeFault, match="expected a numpy array, got list"):
        session.run(x.tolist())


def test_use_after_close(tiny, target):
    session = open_session(tiny.paths[target])
    session.close()
    x = tiny.input_for(target)
    for call in (lambda: session.run(x), lambda: session.per_op(x, 1), session.delegation):
        with pytest.raises(RuntimeFault, match="is closed"):
            call()
    session.close()


@pytest.mark.parametrize("damage", ["empty", "text", "half", "almost", "head"])
def test_damaged_file_is_a_clear_fault(tiny, target, damage, tmp_path):
    raw = tiny.paths[target].read_bytes()
    data = {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n" * 5,
        "half": raw[: len(raw) // 2],
        "almost": raw[:-100],
        "head": b"\xff" * 64 + raw[64:],
    }[damage]
    path = tmp_path / tiny.paths[target].name
    path.write_bytes(data)
    with pytest.raises(RuntimeFault, match=path.name) as caught:
        open_session(path)
    assert "again" in str(caught.value) and caught.value.exit_code == 2


THREADS = """
import sys, json, psutil, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtime.sessions import open_session
counts = []
for threads in (1, 3):
    session = open_session(Path(sys.argv[2]), threads)
    for _ in range(3):
        session.run(np.zeros(session.input.shape, np.float32))
    counts.append(psutil.Process().num_threads())
    session.close()
print(json.dumps(counts))
"""


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_threads_are_honoured(tiny, target):
    """Two more threads of the engine exist when it is asked for three than for one."""
    command = [sys.executable, "-c", THREADS, str(ROOT), str(tiny.paths[target])]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    one, three = json.loads(out)
    assert three - one == 2


def test_executorch_threads_are_the_process_wide_pool(tiny):
    from executorch.extension.pybindings import _portable_lib

    for threads in (2, 1):
        assert open_session(tiny.paths["executorch"], threads).threads == threads
        assert _portable_lib._threadpool_get_thread_count() == threads


@pytest.mark.parametrize(
    ("target", "modules", "extra"),
    [
        ("tflite", ["ai_edge_litert.interpreter", "tflite_runtime.interpreter"], "litert"),
        ("onnx", ["onnxruntime"], "onnx"),
        ("executorch", ["executorch.extension.pybindings"], "executorch"),
    ],
)
def test_absent_engine_names_the_extra(tiny, target, modules, extra, monkeypatch):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=re.escape(f"pip install 'edgevit[{extra}]'")):
        open_session(tiny.paths[target])


def test_core_ml_off_macos(tmp_path):
    if sys.platform == "darwin":
        pytest.skip("this is macOS")
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    for call in (open_session, import_engine):
        with pytest.raises(RuntimeFault, match="macOS only; the artefact is converted, not exec"):
            call(package)


def test_core_ml_specs_are_read_from_the_package():
    """The part of the Core ML session that needs no macOS, on coremltools' own messages."""
    pytest.importorskip("coremltools")
    from coremltools.proto import FeatureTypes_pb2, Model_pb2

    picture = Model_pb2.FeatureDescription(name="image")
    picture.type.imageType.height, picture.type.imageType.width = 24, 32
    spec, is_picture = coreml._only("input", [picture], Path("m.mlpackage"))
    assert is_picture and (spec.shape, spec.dtype, spec.layout) == ([1, 24, 32, 3], "uint8", "NHWC")
    array = Model_pb2.FeatureDescription(name="x")
    array.type.multiArrayType.shape.extend([1, 3, 24, 32])
    kinds = FeatureTypes_pb2.ArrayFeatureType
    for number, dtype in ((kinds.FLOAT32, "float32"), (kinds.FLOAT16, "float16")):
        array.type.multiArrayType.dataType = number
        spec, is_picture = coreml._only("input", [array], Path("m.mlpackage"))
        assert not is_picture and (spec.dtype, spec.layout) == (dtype, "NCHW")
    with pytest.raises(RuntimeFault, match="expected one input, the package has 2"):
        coreml._only("input", [array, picture], Path("m.mlpackage"))


def test_open_session_refuses_what_it_cannot_open(tiny, tmp_path):
    with pytest.raises(
        RuntimeFault, match=r"no engine opens 'model\.h5': expected one of \.tflite"
    ):
        engine_for(Path("model.h5"))
    with pytest.raises(RuntimeFault, match="no such artefact"):
        open_session(tmp_path / "gone.tflite")
    with pytest.raises(RuntimeFault, match="threads must be at least 1, got 0"):
        open_session(tiny.paths["onnx"], 0)


def test_engines_keep_off_the_terminal(tiny, target, capfd):
    session = open_session(tiny.paths[target], 1)
    session.run(tiny.input_for(target))
    session.per_op(tiny.input_for(target), 2)
    session.close()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_per_op_times(tiny, target):
    session = open_session(tiny.paths[target])
    ops, note = session.per_op(tiny.input_for(target), 5)
    assert ops is not None and "profiler over 5 runs" in note
    assert len({op.name for op in ops}) == len(ops)
    assert all(op.ms >= 0 for op in ops) and sum(op.ms for op in ops) > 0
    assert sum(op.share for op in ops) == pytest.approx(1)
    assert any("conv" in op.type.lower() for op in ops)
    assert any("softmax" in op.type.lower() for op in ops)


def test_per_op_refuses_a_wrong_input(tiny, target):
    with pytest.raises(RuntimeFault, match="expected shape"):
        open_session(tiny.paths[target]).per_op(np.zeros((1, 2), np.float32), 1)


def test_executorch_says_why_it_has_no_per_op_times(tiny):
    ops, reason = open_session(tiny.paths["executorch"]).per_op(tiny.input_for("executorch"), 2)
    assert ops is None and "EXECUTORCH_ENABLE_EVENT_TRACER" in reason


def test_litert_delegation_agrees_with_its_profiler(tiny):
    """Derived from the graph; the profiler, another part of the engine, sees the same outside."""
    session = open_session(tiny.paths["tflite"])
    found = session.delegation()
    ops, _ = session.per_op(tiny.input_for("tflite"), 1)
    assert Counter(op.type for op in ops if op.delegate is None) == found.outside
    partitions = {op.name.split(" op ")[0] for op in ops if op.delegate == "XNNPACK"}
    assert len(partitions) == found.partitions >= 2
    assert found.outside and found.nodes_delegated
    assert found.nodes_total == found.nodes_delegated + sum(found.outside.values())


def test_executorch_delegation_agrees_with_its_own_reader(tiny):
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    program = deserialize_pte_binary(tiny.paths["executorch"].read_bytes()).program
    plan = program.execution_plan[0]
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    kernels = Counter(
        f"{plan.operators[c.op_index].name}.{plan.operators[c.op_index].overload}"
        for c in calls
        if isinstance(c, KernelCall)
    )
    found = open_session(tiny.paths["executorch"]).delegation()
    assert found.delegate == "XnnpackBackend"
    assert found.partitions == sum(isinstance(c, DelegateCall) for c in calls) > 0
    assert found.outside == kernels and kernels
    assert found.nodes_total == found.nodes_delegated + kernels.total()
    assert found.nodes_delegated >= 9  # 3 convolutions, 4 linears, softmax, products


def test_onnx_runtime_has_no_delegate(tiny):
    assert open_session(tiny.paths["onnx"]).delegation() is None

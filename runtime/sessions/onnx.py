"""ONNX Runtime on its CPU provider."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import RuntimeFault, missing_extra
from runtime.sessions.base import Array, check_input, closed, layout_of, op_times, run_failed
from runtime.sessions.quiet import engine_chatter
from runtime.tensor_spec import ANY, TensorSpec

if TYPE_CHECKING:
    from runtime.manifest import Delegation
    from runtime.run_record import OpTime

PROVIDERS = ["CPUExecutionProvider"]
FATAL_ONLY = 4  # an error of a run is raised: it need not be printed, once a request, as well
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def import_engine() -> Any:
    """The onnxruntime package. Raises MissingExtra."""
    try:
        with engine_chatter():  # it complains about GPUs it does not find
            import onnxruntime
    except ImportError as error:
        raise missing_extra("Running an .onnx file", "onnxruntime", "onnx") from error
    return onnxruntime


class OnnxSession:
    """One .onnx file with one input and one output, on `threads` threads."""

    engine = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        """Load and optimise. Raises MissingExtra, RuntimeFault where the file does not load."""
        self._onnxruntime = import_engine()
        self.engine_version: str = self._onnxruntime.__version__
        self._path = path
        self.threads = threads
        self._session: Any = self._open(self._options())
        self.input = _only("input", self._session.get_inputs(), path)
        self.output = _only("output", self._session.get_outputs(), path)
        if self.input.shape[:1] != [ANY]:  # then the exporter just did not work the output out
            fixed = self.output.shape_of(self.input.shape[0] if self.input.shape else 1)
            self.output = replace(self.output, shape=fixed)

    def run(self, x: Array) -> Array:
        """Run once: x as `input` says, the result as `output` says, freshly allocated."""
        if self._session is None:
            raise closed(self._path)
        check_input(x, self.input)
        try:
            result: Array = self._session.run([self.output.name], {self.input.name: x})[0]
        except Exception as error:  # its error classes share no base but Exception
            raise run_failed("ONNX Runtime", self._path, error) from error
        return result

    def per_op(self, x: Array, runs: int) -> tuple[list[OpTime] | None, str | None]:
        """Time of each kernel by ONNX Runtime's profiler, in a session of its own."""
        if self._session is None:
            raise closed(self._path)
        check_input(x, self.input)
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(options)
            for _ in range(runs + 1):
                session.run([self.output.name], {self.input.name: x})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _means(events, runs)

    def delegation(self) -> Delegation | None:
        """None: the CPU provider runs every node itself, there is no delegate."""
        if self._session is None:
            raise closed(self._path)
        return None

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ONLY
        return options

    def _open(self, options: Any) -> Any:
        failed = None
        with engine_chatter():
            try:
                return self._onnxruntime.InferenceSession(
                    str(self._path), options, providers=PROVIDERS
                )
            except Exception as error:  # its error classes share no base but Exception
                failed = error
        raise RuntimeFault(
            f"ONNX Runtime cannot load {self._path.name}: {str(failed)[:300]}. "
            f"The file is damaged or needs another ONNX Runtime than {self.engine_version}; "
            f"convert it again or fetch it anew"
        ) from failed


def _means(events: list[dict[str, Any]], runs: int) -> tuple[list[OpTime] | None, str | None]:
    """Mean kernel times without the first run; a `model_run` event ends a run."""
    by_run: list[list[tuple[str, str, float]]] = [[]]
    for event in events:
        name, arguments = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            by_run[-1].append((node, arguments.get("op_name", ""), float(event["dur"])))
        elif name == "model_run":
            by_run.append([])
    steady = by_run[1:-1]
    order = [(node, kind) for node, kind, _ in by_run[0]]
    if len(steady) != runs or any([(n, t) for n, t, _ in run] != order for run in steady):
        return None, "ONNX Runtime's profile does not show the same kernels in every run"
    us = np.array([[duration for _, _, duration in run] for run in steady]).mean(axis=0)
    parts = [(node, kind, mean / 1e3, None) for (node, kind), mean in zip(order, us, strict=True)]
    return op_times(parts), (
        f"ONNX Runtime's own profiler over {runs} runs of a second session, in whole microseconds; "
        "the nodes are those left after its graph optimisation"
    )


def _only(kind: str, values: list[Any], path: Path) -> TensorSpec:
    """The spec of the only input or output; a free first dimension is -1, any number of rows."""
    if len(values) != 1:
        raise RuntimeFault(f"{path.name}: expected one {kind}, the file has {len(values)}")
    value = values[0]
    sizes = list(value.shape)
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = ANY
    if not all(isinstance(n, int) for n in sizes):
        raise RuntimeFault(
            f"{path.name}: {kind} '{value.name}' has the shape {value.shape}: only the first size "
            "may be free, the batch; export it with the other sizes fixed"
        )
    if value.type not in DTYPES:
        raise RuntimeFault(f"{path.name}: {kind} '{value.name}' is a {value.type}, not a tensor")
    return TensorSpec(
        name=value.name,
        shape=sizes,
        dtype=np.dtype(DTYPES[value.type]).name,
        layout=layout_of(sizes),
    )

"""LiteRT (TensorFlow Lite) on the CPU, XNNPACK delegate included."""

from __future__ import annotations

import importlib
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import RuntimeFault, missing_extra
from runtime.sessions.base import Array, check_input, closed, layout_of, run_failed
from runtime.sessions.installed import PACKAGES
from runtime.sessions.quiet import engine_chatter
from runtime.tensor_spec import ANY, TensorSpec

if TYPE_CHECKING:
    from runtime.manifest import Delegation
    from runtime.run_record import OpTime


def import_engine() -> tuple[type[Any], str, str]:
    """The Interpreter class, its package and that package's version. Raises MissingExtra."""
    for module, package in PACKAGES["litert"]:
        try:
            with engine_chatter():
                interpreter = importlib.import_module(f"{module}.interpreter").Interpreter
        except ImportError:
            continue
        return interpreter, package, metadata.version(package)
    raise missing_extra("Running a .tflite file", "ai-edge-litert", "litert")


class LiteRTSession:
    """One .tflite file with one input and one output, on `threads` threads."""

    engine = "litert"

    def __init__(self, path: Path, threads: int) -> None:
        """Load and allocate. Raises MissingExtra, RuntimeFault where the file does not load."""
        interpreter, self._package, self.engine_version = import_engine()
        self._path = path
        self.threads = threads
        said_error = None
        with engine_chatter() as said:
            try:
                self._interpreter: Any = interpreter(model_path=str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                said_error = error
        if said_error is not None:
            raise RuntimeFault(
                f"LiteRT cannot load {path.name}: {said_error}. "
                f"The file is damaged or needs another LiteRT than {self.engine_version}; "
                f"convert it again or fetch it anew"
                + (f" ({said.last_line()})" if said.last_line() else "")
            ) from said_error
        self.input, self._in = _only("input", self._interpreter.get_input_details(), path)
        self.output, self._out = _only("output", self._interpreter.get_output_details(), path)
        self._rows = 0  # that the interpreter is set to, where it takes any number of them

    def run(self, x: Array) -> Array:
        """Run once: x as `input` says, the result as `output` says, freshly allocated."""
        if self._interpreter is None:
            raise closed(self._path)
        check_input(x, self.input)
        try:
            if self.input.shape[:1] == [ANY] and x.shape[0] != self._rows:
                self._resize(x.shape[0])
            self._interpreter.set_tensor(self._in, x)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise run_failed("LiteRT", self._path, error) from error
        result: Array = self._interpreter.get_tensor(self._out)
        return result

    def per_op(self, x: Array, runs: int) -> tuple[list[OpTime] | None, str | None]:
        """Time of each op by LiteRT's profiler, XNNPACK's inner ops included."""
        from runtime.sessions import litert_profile

        if self._interpreter is None:
            raise closed(self._path)
        check_input(x, self.input)
        names = {d["index"]: self._tensor_name(d["outputs"]) for d in self._ops()}
        return litert_profile.per_op(
            self._path,
            self.threads,
            x,
            runs,
            package=self._package,
            version=self.engine_version,
            node_names=names,
        )

    def delegation(self) -> Delegation | None:
        """Partitions of XNNPACK and the nodes left to LiteRT's own kernels.

        The interpreter lists the model's nodes and, behind them, one DELEGATE node a partition,
        but not which nodes it replaced. A partition's outputs are all that others read of it, so
        walking back from them to its inputs visits exactly the nodes it replaced.
        """
        if self._interpreter is None:
            raise closed(self._path)
        ops = self._ops()
        nodes = [op for op in ops if op["op_name"] != "DELEGATE"]
        partitions = [op for op in ops if op["op_name"] == "DELEGATE"]
        producer = {int(t): op for op in nodes for t in op["outputs"]}
        replaced: set[int] = set()
        for partition in partitions:
            inputs = {int(t) for t in partition["inputs"]}
            pending = [int(t) for t in partition["outputs"]]
            while pending:
                tensor = pending.pop()
                op = producer.get(tensor)
                if tensor in inputs or op is None or op["index"] in replaced:
                    continue
                replaced.add(op["index"])
                pending.extend(int(t) for t in op["inputs"] if t >= 0)
        outside = Counter(op["op_name"] for op in nodes if op["index"] not in replaced)
        from runtime.manifest import Delegation

        return Delegation(
            delegate="XNNPACK",
            partitions=len(partitions),
            nodes_delegated=len(replaced),
            nodes_total=len(nodes),
            outside=dict(outside.most_common()),
        )

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None

    def _resize(self, rows: int) -> None:
        """Set the interpreter to batches of another size."""
        self._rows = 0
        with engine_chatter():
            self._interpreter.resize_tensor_input(self._in, self.input.shape_of(rows))
            self._interpreter.allocate_tensors()
        self._rows = rows

    def _ops(self) -> list[dict[str, Any]]:
        """The nodes of the main subgraph: index, op_name, inputs, outputs (tensor indices)."""
        ops: list[dict[str, Any]] = self._interpreter._get_ops_details()
        return ops

    def _tensor_name(self, outputs: Any) -> str:
        """The name of a node's first output tensor."""
        for index in outputs:
            name: str = self._interpreter._get_tensor_details(int(index), subgraph_index=0)["name"]
            return name
        return ""


def _only(kind: str, details: list[dict[str, Any]], path: Path) -> tuple[TensorSpec, int]:
    """The spec and tensor index of the only input or output."""
    if len(details) != 1:
        raise RuntimeFault(f"{path.name}: expected one {kind}, the file has {len(details)}")
    detail = details[0]
    shape = [int(n) for n in detail["shape"]]
    signature = [int(n) for n in detail.get("shape_signature", shape)]
    if ANY in signature[1:]:
        raise RuntimeFault(
            f"{path.name}: {kind} '{detail['name']}' has the shape {signature}: only the first "
            "size may be free, the batch; convert it with the other sizes fixed"
        )
    if signature[:1] == [ANY]:
        shape[0] = ANY
    spec = TensorSpec(
        name=detail["name"],
        shape=shape,
        dtype=np.dtype(detail["dtype"]).name,
        layout=layout_of(shape),
    )
    return spec, int(detail["index"])

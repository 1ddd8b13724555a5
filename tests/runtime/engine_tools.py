"""Artefacts that do on purpose what engines do by accident, and bounded runs of coroutines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import onnx
import psutil
from onnx import TensorProto, helper

from runtime.digest import sha256_of, size_of
from runtime.serving.engines.base import EngineOptions
from runtime.serving.engines.process import EngineProcess
from runtime.serving.engines.thread import EngineThread
from runtime.sessions import open_session

T = TypeVar("T")
PATIENCE_S = 60.0
FOREVER = 1e12
"""As input of `counting`: longer than any test."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run with a bound, which leaves no task behind."""

    async def bounded() -> T:
        result = await asyncio.wait_for(work, PATIENCE_S)
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []
        return result

    return asyncio.run(bounded())


async def until(condition: Any) -> None:
    """Wait for a condition, PATIENCE_S at most."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether a process has ended; its entry may wait for a parent."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Ends:
    """Remembers how engines ended by themselves."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, engine: object, how: str) -> None:
        self.told.append(how)


def engine_of(kind: str, path: Path, ends: Ends | None = None, **options: Any) -> Any:
    """An engine in a 'process' or a 'thread', not started."""
    made = {"process": EngineProcess, "thread": EngineThread}[kind]
    return made(EngineOptions(path, **options), ends or Ends())


def picky(path: Path) -> Path:
    """(N,1) int64 -> (N,1) float32: ten times the number for 0 to 4, anything else fails."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [5], [0.0, 10.0, 20.0, 30.0, 40.0])
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return _save(path, [node], TensorProto.INT64, ["n", 1], ["n", 1], [table])


def doubling(path: Path, batch: int | str = "n") -> Path:
    """(batch,2) float32 -> (batch,2): each row doubled."""
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    return _save(path, [node], TensorProto.FLOAT, [batch, 2], [batch, 2], [two])


def highest(path: Path) -> Path:
    """(n,2) float32 -> (1,2): the largest of each column; a batch is one question."""
    node = helper.make_node("ReduceMax", ["x"], ["y"], axes=[0])
    return _save(path, [node], TensorProto.FLOAT, ["n", 2], [1, 2], [])


def counting(path: Path) -> Path:
    """(1,1) float32 -> (1,1): counts to the number, so that it takes as long as one wants."""
    scalar = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    go_in = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    go_out = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    now = helper.make_tensor_value_info("now", TensorProto.FLOAT, [1, 1])
    then = helper.make_tensor_value_info("then", TensorProto.FLOAT, [1, 1])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["now", "one"], ["then"]),
        ],
        "body",
        [scalar, go_in, now],
        [go_out, then],
        [one],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["times_11"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["times_11", "no_shape"], ["times"]),
        helper.make_node("Loop", ["times", "yes", "zero"], ["y"], body=body),
    ]
    constants = [
        helper.make_tensor("no_shape", TensorProto.INT64, [0], []),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("zero", TensorProto.FLOAT, [1, 1], [0.0]),
    ]
    return _save(path, nodes, TensorProto.FLOAT, [1, 1], [1, 1], constants)


def bundle_with(folder: Path, artifact: Path) -> Path:
    """The bundle in `folder`, which has an onnx target, with another .onnx file in its place."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    entry = manifest["artifacts"]["onnx"]
    path = folder / entry["file"]
    path.write_bytes(artifact.read_bytes())
    session = open_session(path)
    entry |= {
        "sha256": sha256_of(path),
        "size_bytes": size_of(path),
        "input": asdict(session.input),
        "output": asdict(session.output),
    }
    session.close()
    file.write_text(json.dumps(manifest))
    return folder


def _save(
    path: Path,
    nodes: list[Any],
    kind: int,
    into: list[int | str],
    out: list[int | str],
    constants: list[Any],
) -> Path:
    x = helper.make_tensor_value_info("x", kind, into)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path

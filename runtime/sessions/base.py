"""The one Protocol behind which every engine stands, and the table that finds the engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RuntimeFault
from runtime.tensor_spec import ANY, Layout, TensorSpec

if TYPE_CHECKING:  # an engine process loads no schemas, which is a tenth of its memory
    from runtime.manifest import Delegation
    from runtime.run_record import OpTime

Array = NDArray[Any]


class Session(Protocol):
    """One artefact, loaded and ready to run on one engine with a fixed number of threads."""

    engine: str
    engine_version: str
    threads: int
    input: TensorSpec
    output: TensorSpec

    def run(self, x: Array) -> Array:
        """Run once. x is as `input` says, in any memory; the result is the logits, freshly made."""
        ...

    def per_op(self, x: Array, runs: int) -> tuple[list[OpTime] | None, str | None]:
        """Time of each op and how it was taken, or None and why this engine cannot tell."""
        ...

    def delegation(self) -> Delegation | None:
        """What the engine's fast path took, where the engine tells."""
        ...

    def close(self) -> None:
        """Free the engine's memory. The session cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class Engine:
    """An entry of the engine table: how to open a file with a suffix."""

    name: str
    suffix: str
    target: str
    module: str
    opener: str
    extra: str


ENGINES: tuple[Engine, ...] = (
    Engine("litert", ".tflite", "tflite", "runtime.sessions.litert", "LiteRTSession", "litert"),
    Engine("onnxruntime", ".onnx", "onnx", "runtime.sessions.onnx", "OnnxSession", "onnx"),
    Engine(
        "executorch",
        ".pte",
        "executorch",
        "runtime.sessions.executorch",
        "ExecuTorchSession",
        "executorch",
    ),
    Engine("coreml", ".mlpackage", "coreml", "runtime.sessions.coreml", "CoreMLSession", "convert"),
)


def engine_for(path: Path) -> Engine:
    """The engine that opens `path`, by suffix. Raises RuntimeFault with the known suffixes."""
    for engine in ENGINES:
        if path.suffix == engine.suffix:
            return engine
    known = ", ".join(e.suffix for e in ENGINES)
    raise RuntimeFault(f"no engine opens '{path.name}': expected one of {known}")


def import_engine(path: Path) -> None:
    """Import the packages that run `path`, so that opening it afterwards times the model alone.

    Raises MissingExtra where the engine is not installed, RuntimeFault where it cannot run here.
    """
    importlib.import_module(engine_for(path).module).import_engine()


def open_session(path: Path, threads: int = 1) -> Session:
    """Load an artefact on its engine with `threads` CPU threads (at least 1).

    Raises RuntimeFault where the file is missing or corrupt or the engine cannot run on this
    system, MissingExtra where the engine is not installed.
    """
    engine = engine_for(path)
    if threads < 1:
        raise RuntimeFault(f"threads must be at least 1, got {threads}")
    if not path.exists():
        raise RuntimeFault(f"no such artefact: {path}")
    opener: Callable[[Path, int], Session] = getattr(
        importlib.import_module(engine.module), engine.opener
    )
    return opener(path, threads)


def check_input(x: Array, spec: TensorSpec) -> None:
    """Refuse an input before the engine sees it. Raises RuntimeFault: expected and got."""
    if not isinstance(x, np.ndarray):
        raise RuntimeFault(f"input '{spec.name}': expected a numpy array, got {type(x).__name__}")
    if not takes(spec, x.shape):
        raise RuntimeFault(
            f"input '{spec.name}': expected shape {spec.shape}"
            + (f" ({spec.layout})" if spec.layout else "")
            + f", got {list(x.shape)}"
        )
    if x.dtype != spec.dtype:
        raise RuntimeFault(f"input '{spec.name}': expected dtype {spec.dtype}, got {x.dtype}")


def takes(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether an array of this shape goes in: equal to the spec's, or any number of rows."""
    if spec.shape[:1] == [ANY] and shape and shape[0] >= 1:
        return list(shape[1:]) == spec.shape[1:]
    return list(shape) == spec.shape


def layout_of(shape: list[int]) -> Layout | None:
    """The layout of a picture tensor, from its shape: (N,3,H,W) NCHW, (N,H,W,3) NHWC, else None."""
    if len(shape) != 4:
        return None
    return "NCHW" if shape[1] == 3 else "NHWC" if shape[3] == 3 else None


def closed(path: Path) -> RuntimeFault:
    """The error for a call on a session after close()."""
    return RuntimeFault(f"the session of {path.name} is closed: open it again before running it")


def run_failed(engine: str, path: Path, error: Exception) -> RuntimeFault:
    """The error for a file that loaded but whose execution the engine gave up."""
    return RuntimeFault(
        f"{engine} loaded {path.name} but cannot run it: {str(error)[:300]}. "
        "The conversion made a program this engine does not support"
    )


def op_times(parts: Sequence[tuple[str, str, float, str | None]]) -> list[OpTime]:
    """OpTime entries with shares from (name, type, ms a run, delegate), in that order."""
    from runtime.run_record import OpTime

    total = sum(ms for _, _, ms, _ in parts)
    return [
        OpTime(name=n, type=t, ms=ms, share=ms / total if total else 0.0, delegate=d)
        for n, t, ms, d in parts
    ]

"""LiteRT's op profiler, reached through the C interface of the shipped libLiteRt.so.

The Python classes of ai-edge-litert do not show the profiler, but the library of the wheel exports
it (litert/c/litert_profiler.h). The file is loaded a second time through the CompiledModel
interface with `enable_profiling`, so these times come from their own load, never from the one that
was measured. XNNPACK reports its inner ops; LiteRT reports the nodes outside. Whole microseconds.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.run_record import OpTime
from runtime.sessions.base import Array, op_times
from runtime.sessions.quiet import engine_chatter

OLDEST = (2, 3)  # before, LiteRtCreateModelFromFile took other arguments
CPU = 1  # kLiteRtHwAcceleratorCpu
LOCK_FOR_WRITE = 1

# ProfiledEventData, in 8-byte words: tag, event type, start, elapsed us, memory before (3), memory
# after (3), metadata 1 (the node index), metadata 2, source.
EVENT_WORDS = 13
OPERATOR, DELEGATE_OPERATOR, DELEGATE_PROFILED_OPERATOR = 2, 4, 8
SPARE = 4  # a later library's event may be larger: leave room for it, then notice


class Event(NamedTuple):
    """One profiled op of one run."""

    tag: str
    kind: int
    node: int
    us: int


class UnknownLayoutError(Exception):
    """The events do not look like the ones this file was written for."""


def per_op(
    path: Path,
    threads: int,
    x: Array,
    runs: int,
    *,
    package: str,
    version: str,
    node_names: dict[int, str],
) -> tuple[list[OpTime] | None, str | None]:
    """Mean time of each executed op over `runs` runs, in milliseconds, in order of execution.

    x is the input in the file's own shape and dtype; node_names maps a node index to a name.
    The second value says how it was measured, or why it could not be.
    """
    if package != "ai-edge-litert" or _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return (
            None,
            f"per-op times need ai-edge-litert {oldest} or newer, here is {package} {version}",
        )
    library = _library()
    if library is None:
        return None, f"{package} {version} has no libLiteRt with a profiler on this system"
    with engine_chatter():
        try:
            with _Model(library, path, threads) as model:
                model.set_input(x)
                recorded = [model.profiled_run() for _ in range(runs + 1)][1:]
        except (_RefusedError, UnknownLayoutError) as error:
            return None, f"LiteRT's profiler did not answer: {error}"
    return _means(recorded, node_names)


def _means(
    recorded: list[list[Event]], node_names: dict[int, str]
) -> tuple[list[OpTime] | None, str | None]:
    order = [(e.tag, e.kind, e.node) for e in recorded[0]]
    if any([(e.tag, e.kind, e.node) for e in run] != order for run in recorded):
        return None, "LiteRT's profiler reported different ops from run to run"
    if not order:
        return None, "LiteRT's profiler reported no op"
    us = np.array([[e.us for e in run] for run in recorded], np.float64).mean(axis=0)
    parts: list[tuple[str, str, float, str | None]] = []
    partition, inside = -1, False
    for (tag, kind, node), mean in zip(order, us, strict=True):
        if kind == OPERATOR:
            inside = False
            parts.append((f"{node} {node_names.get(node, '')}".rstrip(), tag, mean / 1e3, None))
            continue
        if not inside or node == 0:  # XNNPACK counts its ops from 0 in each partition
            partition, inside = partition + 1, True
        parts.append((f"partition {partition} op {node}", tag, mean / 1e3, "XNNPACK"))
    return op_times(parts), (
        f"LiteRT's own profiler over {len(recorded)} runs of a second load (CompiledModel), "
        "in whole microseconds; XNNPACK's ops are those left after its own fusion"
    )


class _RefusedError(Exception):
    """A C call answered with an error status."""


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank_and_flags", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class _RankedTensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int32), ("layout", _Layout))


class _Model:
    """A compiled model with its profiler and its two buffers, for the length of a with block."""

    def __init__(self, library: ctypes.CDLL, path: Path, threads: int) -> None:
        self._library = library
        self._path = path
        self._threads = threads
        self._cleanup = ExitStack()

    def __enter__(self) -> _Model:
        try:
            self._open()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _open(self) -> None:
        self._env = self._make("Environment", "LiteRtCreateEnvironment", c_int(0), None)
        model = self._make(
            "Model", "LiteRtCreateModelFromFile", self._env, c_char_p(str(self._path).encode())
        )
        options = self._make("Options", "LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, c_int(CPU))
        self._option(options, "runtime_options_string", "enable_profiling = true\n")
        self._option(options, "xnnpack", f"num_threads = {self._threads}\n")
        self._compiled = self._make(
            "CompiledModel", "LiteRtCreateCompiledModel", self._env, model, options
        )
        self._profiler = self._get("LiteRtCompiledModelGetProfiler", self._compiled)
        signature = self._get("LiteRtGetModelSignature", model, c_size_t(0))
        self._input = self._buffer("Input", signature)
        self._output = self._buffer("Output", signature)

    def set_input(self, x: Array) -> None:
        """Copy x (C order) into the input buffer."""
        data = np.ascontiguousarray(x).tobytes()
        size = c_size_t()
        self._call("LiteRtGetTensorBufferPackedSize", self._input, byref(size))
        if size.value != len(data):
            raise _RefusedError(f"the input holds {size.value} bytes, got {len(data)}")
        with self._locked(self._input) as address:
            ctypes.memmove(address, data, len(data))

    def profiled_run(self) -> list[Event]:
        """Run once with the profiler on: the events of the executed ops, in order."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self._call(
            "LiteRtRunCompiledModel",
            self._compiled,
            c_size_t(0),
            c_size_t(1),
            (c_void_p * 1)(self._input),
            c_size_t(1),
            (c_void_p * 1)(self._output),
        )
        self._call("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        raw = (c_char * (count.value * EVENT_WORDS * 8 * SPARE))()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, raw)
        return _events(bytes(raw), count.value)

    def _buffer(self, kind: str, signature: c_void_p) -> c_void_p:
        tensor = self._get(f"LiteRtGetSignature{kind}TensorByIndex", signature, c_size_t(0))
        ranked = _RankedTensorType()
        self._call("LiteRtGetRankedTensorType", tensor, byref(ranked))
        needs = self._get(
            f"LiteRtGetCompiledModel{kind}BufferRequirements",
            self._compiled,
            c_size_t(0),
            c_size_t(0),
        )
        return self._make(
            "TensorBuffer",
            "LiteRtCreateManagedTensorBufferFromRequirements",
            self._env,
            byref(ranked),
            needs,
        )

    def _option(self, options: c_void_p, name: str, toml: str) -> None:
        """Attach an opaque option; LiteRT frees the text with C's free()."""
        libc = ctypes.CDLL(None)
        libc.strdup.restype = c_void_p
        text = c_void_p(libc.strdup(c_char_p(toml.encode())))
        free = ctypes.cast(libc.free, c_void_p)
        opaque = self._get("LiteRtCreateOpaqueOptions", c_char_p(name.encode()), text, free)
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    @contextmanager
    def _locked(self, buffer: c_void_p) -> Iterator[c_void_p]:
        address = c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), c_int(LOCK_FOR_WRITE))
        try:
            yield address
        finally:
            self._call("LiteRtUnlockTensorBuffer", buffer)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = c_int
        status = function(*arguments)
        if status != 0:
            raise _RefusedError(f"{name} returned status {status}")

    def _get(self, name: str, *arguments: Any) -> c_void_p:
        handle = c_void_p()
        self._call(name, *arguments, byref(handle))
        return handle

    def _make(self, kind: str, name: str, *arguments: Any) -> c_void_p:
        """A handle that LiteRtDestroy<kind> frees at the end, last made first."""
        handle = self._get(name, *arguments)
        destroy = getattr(self._library, f"LiteRtDestroy{kind}")
        destroy.restype = None
        self._cleanup.callback(destroy, handle)
        return handle


def _events(raw: bytes, count: int) -> list[Event]:
    """The op events of one run. Raises UnknownLayoutError before any pointer is followed."""
    words = np.frombuffer(raw, np.uint64)
    used = words[: count * EVENT_WORDS].reshape(count, EVENT_WORDS)
    kinds = used[:, 1] & np.uint64(0xFFFFFFFF)
    sources = used[:, 12] & np.uint64(0xFFFFFFFF)
    known = {1 << bit for bit in range(9)}
    if (
        words[count * EVENT_WORDS :].any()
        or not set(kinds.tolist()) <= known
        or (sources > 2).any()
        or (used[:, 0] == 0).any()
    ):
        raise UnknownLayoutError("its events have another layout than LiteRT 2.3's")
    ops = np.isin(kinds, (OPERATOR, DELEGATE_OPERATOR, DELEGATE_PROFILED_OPERATOR))
    return [
        Event(
            ctypes.string_at(int(row[0])).decode("utf-8", "replace"),
            int(k),
            int(row[10]),
            int(row[3]),
        )
        for row, k in zip(used[ops], kinds[ops], strict=True)
    ]


def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("ai_edge_litert")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("libLiteRt.so", "libLiteRt.dylib"):
            if (file := Path(folder) / name).exists():
                library = ctypes.CDLL(str(file))
                if hasattr(library, "LiteRtCompiledModelGetProfiler"):
                    return library
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.3.0' is (2, 3, 0)."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)

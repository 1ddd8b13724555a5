"""What a device senses: one picture a file, NAME.npy, which its camera's program replaces.

The program writes under another name and renames: who has opened the old picture reads it to its
end, and nobody ever sees a half one.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import math
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from runtime.errors import RuntimeFault
from runtime.sessions.base import Array
from runtime.tensor_spec import TensorSpec
from runtime.wire.input_ref import input_refused
from runtime.wire.refused import Refused

THREADS = 4  # of their own: a folder on a network may hang, and uploads and loads shall not
READ_S = 2.0  # then it is no picture of now any more
HEAD_BYTES = 4096  # magic, lengths and header; numpy's own take 128
MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by the format's version
NATIVE = "<=|"  # before a dtype of one byte, or of this machine's order if that is the usual one
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
RENAME = "write it under another name and rename it"


class InputsFolder:
    """The inputs of one device, read anew for every request."""

    def __init__(self, folder: Path) -> None:
        """Raises RuntimeFault where the folder is not there."""
        if not folder.is_dir():
            raise RuntimeFault(f"--inputs {folder}: expected a folder; make it first")
        self._folder = folder
        self._threads = ThreadPoolExecutor(THREADS, "inputs")

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, name: str, spec: TensorSpec) -> tuple[Array, int]:
        """The picture NAME.npy as a model takes it, one row of it, and its age in microseconds.

        name is of runtime.wire.input_ref. The age is that of the file, by this device's clock.
        Raises Refused: NOT_FOUND where there is none, INVALID_ARGUMENT where it is not one picture
        of this dtype and shape, FAILED_PRECONDITION where it may not be read, or not in time.
        """
        file = f"{name}.npy"
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self._read, file, spec)
        try:
            return await asyncio.wait_for(reading, READ_S)
        except TimeoutError as error:
            raise input_refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{file} could not be read within {READ_S:g} s; keep --inputs on a disk or in "
                "memory of the device itself",
            ) from error

    def _read(self, file: str, spec: TensorSpec) -> tuple[Array, int]:
        try:
            descriptor = os.open(self._folder / file, FLAGS)
            try:
                return _picture(descriptor, file, spec)
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise input_refused(
                grpc.StatusCode.NOT_FOUND, f"no {file} in this agent's --inputs; {RENAME}"
            ) from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise _unfit(file, f"is a link, and none is followed; {RENAME}") from error
            raise input_refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the agent cannot read {file} in its --inputs: {error.strerror}; let its user "
                "read it",
            ) from error


@dataclass(frozen=True)
class _Head:
    """What the first bytes of a file say of the others, which begin at `offset`."""

    dtype: str
    shape: Sequence[int]
    columns_first: bool
    offset: int


def _picture(descriptor: int, file: str, spec: TensorSpec) -> tuple[Array, int]:
    """What an open file holds, and its age in microseconds. Raises Refused and OSError."""
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise _unfit(file, f"is no plain file; {RENAME}")
    head = _head(os.pread(descriptor, HEAD_BYTES, 0), file)
    dtype, shape = np.dtype(spec.dtype), spec.shape_of(1)
    if head.dtype.lstrip(NATIVE) != dtype.str.lstrip(NATIVE) or list(head.shape) != shape:
        layout = f" ({spec.layout})" if spec.layout else ""
        raise _unfit(
            file,
            f"has {head.dtype[:20]!a} {list(head.shape[:8])}; expected one picture, {dtype.str!a} "
            f"{shape}{layout}",
        )
    size = head.offset + math.prod(shape) * dtype.itemsize
    if before.st_size != size:
        part = "a part of it" if before.st_size < size else "more"
        raise _unfit(file, f"has {before.st_size} of {size} bytes: {part}; {RENAME}")
    x: Array = np.empty(shape[::-1] if head.columns_first else shape, dtype)
    with os.fdopen(descriptor, "rb", closefd=False) as opened:
        opened.seek(head.offset)
        count = opened.readinto(x.reshape(-1).view(np.uint8).data)
    after = os.fstat(descriptor)
    age_us = max(0, time.time_ns() - after.st_mtime_ns) // 1000
    if count != x.nbytes or (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, size):
        raise _unfit(file, f"was written to while it was read; {RENAME}")
    _check_values(x, file)
    return (np.ascontiguousarray(x.T) if head.columns_first else x), age_us


def _head(data: bytes, file: str) -> _Head:
    """Read the header as NEP 1 has it. numpy's reader would warn, and make room before it looks."""
    width = LENGTH_BYTES.get(data[6]) if len(data) > 10 and data.startswith(MAGIC) else None
    if width is None:
        raise _unfit(
            file, f"is no .npy file, or a part of one; save it with numpy.save and {RENAME}"
        )
    begin = 8 + width
    offset = begin + int.from_bytes(data[8:begin], "little")
    try:
        if not begin < offset <= len(data):
            raise ValueError("cut off, or longer than any of an array")
        said = ast.literal_eval(data[begin:offset].decode("latin1"))
        head = _Head(said["descr"], said["shape"], said["fortran_order"], offset)
        if not isinstance(head.dtype, str) or not isinstance(head.columns_first, bool):
            raise ValueError("not of plain numbers")
        if type(head.shape) is not tuple or not all(type(n) is int for n in head.shape):
            raise ValueError("without a shape")
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise _unfit(
            file, "has no header of an array of plain numbers; save it with numpy.save"
        ) from error
    return head


def _check_values(x: Array, file: str) -> None:
    """Raises Refused for numbers that no answer could be made of."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise _unfit(file, "has NaN or infinity; mend what writes it")
    if x.dtype.kind == "b" and x.view(np.uint8).max(initial=0) > 1:
        raise _unfit(file, "has a byte that is neither 0 nor 1 for a bool; mend what writes it")


def _unfit(file: str, text: str) -> Refused:
    return input_refused(
        grpc.StatusCode.INVALID_ARGUMENT, f"{file} in this agent's --inputs {text}"
    )

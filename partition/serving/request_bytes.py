"""The request to a worker as bytes: the picture is copied once for each, and serialised never.

Protobuf reads two messages one behind the other as one, so that a request is what differs between
workers (the model's name and version), then what does not (the input's name and shape), then the
picture as it came.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from runtime.sessions.base import Array
from runtime.tensor_spec import Layout, TensorSpec
from runtime.wire.descriptors import message
from runtime.wire.input_ref import put_input_ref
from runtime.wire.tensors import datatype_of

TO: dict[Layout, tuple[int, ...]] = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 2, 3, 1)}
RAW_INPUT_CONTENTS = 7 << 3 | 2  # the field's number, and that a length follows


class Asked(Protocol):
    """What all workers are asked: `rows` of an answer. `sensed`: no picture goes with it."""

    rows: int
    sensed: bool

    def request(self, head: bytes, wanted: TensorSpec) -> bytes:
        """The whole request, to an artefact with the input `wanted`; head is of request_head."""
        ...


class InputName:
    """The name of an input, one picture, that every worker is to sense by itself."""

    rows, sensed = 1, True

    def __init__(self, name: str) -> None:
        about = _REQUEST()
        put_input_ref(about, name)
        self._bytes: bytes = about.SerializeToString()

    def __len__(self) -> int:
        return self.rows

    def request(self, head: bytes, wanted: TensorSpec) -> bytes:
        """See Asked."""
        return head + self._bytes


class PictureBytes:
    """The pictures of a request, (rows, ...) as `spec` says, for artefacts of either layout."""

    sensed = False

    def __init__(self, x: Array, spec: TensorSpec) -> None:
        self.rows = len(x)
        self._x, self._spec = x, spec
        self._made: dict[tuple[str, Layout | None], tuple[bytes, memoryview]] = {}

    def request(self, head: bytes, wanted: TensorSpec) -> bytes:
        """See Asked."""
        key = wanted.name, wanted.layout
        if key not in self._made:
            self._made[key] = self._parts(wanted)
        return b"".join((head, *self._made[key]))

    def _parts(self, wanted: TensorSpec) -> tuple[bytes, memoryview]:
        x = self._laid_out(wanted.layout)
        about = _REQUEST()
        about.inputs.add(name=wanted.name, datatype=datatype_of(wanted.dtype), shape=x.shape)
        begin = bytes([RAW_INPUT_CONTENTS]) + _varint(x.nbytes)
        return about.SerializeToString() + begin, x.data

    def _laid_out(self, layout: Layout | None) -> Array:
        if layout is None or self._spec.layout in (None, layout):
            return np.ascontiguousarray(self._x)
        return np.ascontiguousarray(self._x.transpose(TO[layout]))


def request_head(model: str, version: str) -> bytes:
    """What goes before the pictures."""
    head: bytes = _REQUEST(model_name=model, model_version=version).SerializeToString()
    return head


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have the highest bit set."""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


_REQUEST = message("inference.ModelInferRequest")

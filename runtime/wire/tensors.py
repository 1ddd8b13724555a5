"""Tensors of the Open Inference Protocol: checked on the way in, raw on the way out.

Raw contents are row-major bytes without padding, one entry a tensor in the order of `inputs`; a
request uses them for all its tensors or for none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.sessions.base import Array
from runtime.tensor_spec import ANY, TensorSpec
from runtime.wire.descriptors import Message, message
from runtime.wire.refused import Refused, invalid

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
# Numpy needs microseconds to make a dtype from its name, and more to tell its name.
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(dtype) for name, dtype in DATATYPES.items()}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
# The field of `contents` that carries a datatype; small integers ride in the next larger field.
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
MOST_DIMENSIONS = 32  # of numpy 1


def datatype_of(dtype: str) -> str:
    """The protocol's name of a numpy dtype: 'float32' is 'FP32'. Raises Refused."""
    if dtype not in NAMES:
        raise invalid(f"no datatype of the protocol carries {dtype}")
    return NAMES[dtype]


def decode(request: Message, specs: Sequence[TensorSpec]) -> list[Array]:
    """The inputs of a ModelInferRequest, in the order of `specs`, as read-only views where raw.

    A size of -1 in a spec takes any size from 1. Raises Refused (INVALID_ARGUMENT) for a name,
    datatype, shape or content that does not fit, naming what was expected.
    """
    names = [tensor.name for tensor in request.inputs]
    expected = [spec.name for spec in specs]
    if sorted(names) != sorted(expected):
        raise invalid(f"expected the inputs {expected}, got {names[:8]}")
    raw = len(request.raw_input_contents) > 0
    if raw and len(request.raw_input_contents) != len(names):
        raise invalid(
            f"expected {len(names)} raw_input_contents, one for each input, "
            f"got {len(request.raw_input_contents)}"
        )
    decoded = {}
    for number, tensor in enumerate(request.inputs):
        spec = specs[expected.index(tensor.name)]
        dtype, shape = _checked(tensor, spec)
        if raw and tensor.HasField("contents"):
            raise invalid(
                f"input '{tensor.name}': contents and raw_input_contents together; send one of them"
            )
        decoded[tensor.name] = (
            _from_raw(request.raw_input_contents[number], dtype, shape, tensor.name)
            if raw
            else _from_contents(tensor, dtype, shape)
        )
    return [decoded[name] for name in expected]


def requested(request: Message, specs: Sequence[TensorSpec]) -> list[int]:
    """Which outputs a request asks for, as indices into `specs`; all where it names none."""
    known = [spec.name for spec in specs]
    names = [output.name for output in request.outputs]
    for name in names:
        if name not in known:
            raise invalid(f"expected an output of {known}, got '{name[:80]}'")
    if len(set(names)) != len(names):
        raise invalid(f"an output is asked for twice: {names[:8]}")
    return [known.index(name) for name in names] or list(range(len(specs)))


def metadata_of(spec: TensorSpec) -> Message:
    """An input or output as ModelMetadata tells of it."""
    return message("inference.ModelMetadataResponse.TensorMetadata")(
        name=spec.name, datatype=datatype_of(spec.dtype), shape=spec.shape
    )


def put_input(request: Message, name: str, x: Array) -> None:
    """Add a tensor to a ModelInferRequest, raw."""
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = name, _datatype(x)
    tensor.shape.extend(x.shape)
    request.raw_input_contents.append(np.ascontiguousarray(x).tobytes())


def put_output(response: Message, name: str, x: Array) -> None:
    """Add a tensor to a ModelInferResponse, raw."""
    tensor = response.outputs.add()
    tensor.name, tensor.datatype = name, _datatype(x)
    tensor.shape.extend(x.shape)
    response.raw_output_contents.append(np.ascontiguousarray(x).tobytes())


def read_outputs(response: Message) -> dict[str, Array]:
    """The outputs of a ModelInferResponse by name, raw or not. Raises Refused."""
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise invalid(f"the answer has {len(response.outputs)} outputs and {len(raw)} raw contents")
    found = {}
    for number, tensor in enumerate(response.outputs):
        dtype, shape = _dtype_of(tensor), _shape_of(tensor)
        found[tensor.name] = (
            _from_raw(raw[number], dtype, shape, tensor.name)
            if raw
            else _from_contents(tensor, dtype, shape)
        )
    return found


def fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether a shape is one that `expected` allows, where -1 allows any size from 1."""
    return len(shape) == len(expected) and all(
        got == want or (want == ANY and got >= 1) for got, want in zip(shape, expected, strict=True)
    )


def _checked(tensor: Message, spec: TensorSpec) -> tuple[np.dtype[Any], list[int]]:
    """dtype and shape of a tensor that fits its spec."""
    wants = datatype_of(spec.dtype)
    if tensor.datatype != wants:
        raise invalid(
            f"input '{spec.name}': expected datatype {wants}, got '{tensor.datatype[:20]}'"
        )
    shape = list(tensor.shape)
    if not fits(shape, spec.shape):
        layout = f" ({spec.layout})" if spec.layout else ""
        raise invalid(f"input '{spec.name}': expected shape {spec.shape}{layout}, got {shape[:8]}")
    return _DTYPES[wants], shape


def _datatype(x: Array) -> str:
    """The protocol's name of an array's dtype."""
    return _DATATYPES.get(x.dtype) or datatype_of(str(x.dtype))


def _dtype_of(tensor: Message) -> np.dtype[Any]:
    if tensor.datatype not in DATATYPES:
        raise invalid(
            f"'{tensor.name}': expected a datatype of {', '.join(DATATYPES)}, "
            f"got '{tensor.datatype[:20]}'"
        )
    return _DTYPES[tensor.datatype]


def _shape_of(tensor: Message) -> list[int]:
    """The shape of a tensor that no spec describes."""
    shape = list(tensor.shape)
    if len(shape) > MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise invalid(f"'{tensor.name[:80]}': not a shape: {shape[:8]}")
    return shape


def _from_raw(data: bytes, dtype: np.dtype[Any], shape: Sequence[int], name: str) -> Array:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise invalid(
            f"'{name}': expected {expected} bytes for shape {list(shape)} of {dtype}, "
            f"got {len(data)}"
        )
    if dtype == np.bool_ and not _are_bools(data):
        raise invalid(f"'{name}': a BOOL is one byte, 0 or 1")
    x: Array = np.frombuffer(data, dtype).reshape(shape)
    return x


def _are_bools(data: bytes) -> bool:
    """Whether each byte is 0 or 1: numpy takes others too, which then equal neither."""
    return not data or int(np.frombuffer(data, np.uint8).max()) <= 1


def _from_contents(tensor: Message, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise invalid(f"'{tensor.name}': {tensor.datatype} travels in raw contents only")
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise invalid(
                f"'{tensor.name}': {tensor.datatype} travels in contents.{field}, got {other.name}"
            )
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise invalid(
            f"'{tensor.name}': expected {math.prod(shape)} values for shape {list(shape)}, "
            f"got {len(values)}"
        )
    try:
        x: Array = np.array(values, dtype).reshape(shape)
    except OverflowError as error:
        raise _out_of_range(tensor) from error
    if dtype.kind in "iu" and dtype.itemsize < 4:
        wide = np.array(values, np.int64)
        limits = np.iinfo(dtype)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise _out_of_range(tensor)
    return x


def _out_of_range(tensor: Message) -> Refused:
    return invalid(f"'{tensor.name}': a value is outside the range of {tensor.datatype}")

"""Tensors on the wire: every dtype there and back, and every wrong request refused in words."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.manifest import TensorSpec
from runtime.wire.descriptors import message
from runtime.wire.refused import Refused
from runtime.wire.tensors import (
    CONTENTS,
    DATATYPES,
    decode,
    fits,
    put_input,
    put_output,
    read_outputs,
    requested,
)

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
PICTURE = TensorSpec(name="image", shape=[1, 4, 4, 3], dtype="float32", layout="NHWC")
ANY_BATCH = TensorSpec(name="image", shape=[-1, 2], dtype="uint8")


def arrays(datatypes=DATATYPES):
    return st.sampled_from([DATATYPES[name] for name in datatypes]).flatmap(
        lambda dtype: hnp.arrays(dtype, SHAPES)
    )


def spec_of(name, x):
    return TensorSpec(name=name, shape=list(x.shape), dtype=str(x.dtype))


def picture_request(**changes):
    request = Request(model_name="m")
    put_input(request, "image", np.zeros((1, 4, 4, 3), np.float32))
    for name, value in changes.items():
        setattr(request.inputs[0], name, value)
    return request


def refusal(request, *specs):
    with pytest.raises(Refused) as caught:
        decode(request, specs or [PICTURE])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value)


@given(st.lists(arrays(), min_size=1, max_size=4), st.randoms())
def test_raw_inputs_come_back_bit_for_bit_in_any_order(given_arrays, random):
    named = {f"in{number}": x for number, x in enumerate(given_arrays)}
    order = list(named)
    random.shuffle(order)
    request = Request()
    for name in order:
        put_input(request, name, named[name])
    travelled = Request.FromString(request.SerializeToString())
    got = decode(travelled, [spec_of(name, x) for name, x in named.items()])
    for x, y in zip(named.values(), got, strict=True):
        assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()


@given(st.lists(arrays(), min_size=1, max_size=4))
def test_outputs_come_back_bit_for_bit(given_arrays):
    response = Response()
    for number, x in enumerate(given_arrays):
        put_output(response, f"out{number}", x)
    got = read_outputs(Response.FromString(response.SerializeToString()))
    assert list(got) == [f"out{number}" for number in range(len(given_arrays))]
    for x, y in zip(given_arrays, got.values(), strict=True):
        assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()


@given(arrays(CONTENTS))
def test_contents_say_the_same_as_raw(x):
    """As a client writes them that has no raw contents: one number after the other."""
    datatype = next(name for name, dtype in DATATYPES.items() if dtype == x.dtype)
    request = Request()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=x.shape)
    getattr(tensor.contents, CONTENTS[datatype]).extend(x.reshape(-1).tolist())
    (got,) = decode(Request.FromString(request.SerializeToString()), [spec_of("x", x)])
    assert got.dtype == x.dtype and got.shape == x.shape
    np.testing.assert_array_equal(got, x)


def test_a_transposed_array_travels_in_its_own_order():
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    request = Request()
    put_input(request, "x", x)
    np.testing.assert_array_equal(decode(request, [spec_of("x", x)])[0], x)


def test_float16_travels_raw_only():
    request = Request()
    tensor = request.inputs.add(name="x", datatype="FP16", shape=[1])
    tensor.contents.fp32_contents.append(1.0)
    spec = TensorSpec(name="x", shape=[1], dtype="float16")
    assert "FP16 travels in raw contents only" in refusal(request, spec)


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("UINT8", "uint_contents", 256),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 32768),
        ("UINT16", "uint_contents", 65536),
    ],
)
def test_small_integers_out_of_range(datatype, field, value):
    request = Request()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend([1, value])
    spec = TensorSpec(name="x", shape=[2], dtype=DATATYPES[datatype])
    assert f"outside the range of {datatype}" in refusal(request, spec)


def test_a_bool_is_zero_or_one():
    request = Request(raw_input_contents=[b"\0\2"])
    request.inputs.add(name="x", datatype="BOOL", shape=[2])
    spec = TensorSpec(name="x", shape=[2], dtype="bool")
    assert "0 or 1" in refusal(request, spec)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": "picture"}, ["expected the inputs ['image']", "picture"]),
        ({"datatype": "FP64"}, ["'image'", "expected datatype FP32, got 'FP64'"]),
        ({"datatype": "BYTES"}, ["expected datatype FP32, got 'BYTES'"]),
        ({"datatype": "x" * 5000}, ["expected datatype FP32"]),
    ],
)
def test_a_wrong_tensor_is_named(changes, parts):
    text = refusal(picture_request(**changes))
    assert len(text) < 300
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    "shape", [[], [1, 4, 4], [1, 4, 3, 4], [0, 4, 4, 3], [-1, 4, 4, 3], [2**40, 4, 4, 3]]
)
def test_a_wrong_shape_is_told_with_the_right_one(shape):
    request = picture_request()
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    text = refusal(request)
    assert f"expected shape [1, 4, 4, 3] (NHWC), got {shape}" in text


def test_contents_and_raw_together():
    request = picture_request()
    request.inputs[0].contents.fp32_contents.append(1)
    assert "contents and raw_input_contents together" in refusal(request)


def test_contents_in_the_field_of_another_datatype():
    request = picture_request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.int_contents.extend([0] * 48)
    assert "FP32 travels in contents.fp32_contents, got int_contents" in refusal(request)


@pytest.mark.parametrize("count", [0, 191, 193, 4 * 48 * 2])
def test_raw_of_another_length(count):
    request = picture_request()
    request.raw_input_contents[0] = bytes(count)
    assert f"expected 192 bytes for shape [1, 4, 4, 3] of float32, got {count}" in refusal(request)


def test_raw_for_some_inputs_only():
    request = picture_request()
    put_input(request, "more", np.zeros(1, np.float32))
    del request.raw_input_contents[1:]
    more = TensorSpec(name="more", shape=[1], dtype="float32")
    assert "expected 2 raw_input_contents, one for each input, got 1" in refusal(
        request, PICTURE, more
    )


def test_an_input_twice_and_an_input_missing():
    request = picture_request()
    put_input(request, "image", np.zeros((1, 4, 4, 3), np.float32))
    assert "expected the inputs ['image']" in refusal(request)
    assert "expected the inputs ['image'], got []" in refusal(Request())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_from_one(batch):
    request = Request()
    put_input(request, "image", np.full((batch, 2), 3, np.uint8))
    assert decode(request, [ANY_BATCH])[0].shape == (batch, 2)


def test_no_batch_of_nothing():
    request = Request()
    put_input(request, "image", np.zeros((0, 2), np.uint8))
    assert "expected shape [-1, 2], got [0, 2]" in refusal(request, ANY_BATCH)


@given(st.lists(st.integers(-3, 5), max_size=4), st.lists(st.integers(-1, 5), max_size=4))
def test_shapes_that_fit_are_those_of_an_array(shape, expected):
    told = fits(shape, expected)
    if told:
        assert all(size >= 1 or size == want for size, want in zip(shape, expected, strict=True))
        assert [s if w == -1 else w for s, w in zip(shape, expected, strict=True)] == shape


def test_requested_outputs_in_the_order_of_the_request():
    specs = [TensorSpec(name=name, shape=[1], dtype="float32") for name in ("a", "b", "c")]
    request = Request()
    assert requested(request, specs) == [0, 1, 2]
    request.outputs.add(name="c")
    request.outputs.add(name="a")
    assert requested(request, specs) == [2, 0]
    request.outputs.add(name="c")
    with pytest.raises(Refused, match="asked for twice"):
        requested(request, specs)
    request.outputs[2].name = "d" * 5000
    with pytest.raises(Refused, match="expected an output of") as caught:
        requested(request, specs)
    assert len(str(caught.value)) < 300


TEXTS = st.text(max_size=8) | st.sampled_from(["image", "FP32", "UINT8", "BOOL", "FP16", "BYTES"])
SIZES = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 8)
PLAIN = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=4),
}
CONTENT = st.dictionaries(st.sampled_from(list(PLAIN)), st.just(None), max_size=2).flatmap(
    lambda keys: st.fixed_dictionaries({k: st.lists(PLAIN[k], max_size=9) for k in keys})
)
TENSOR = st.fixed_dictionaries(
    {"name": TEXTS, "datatype": TEXTS | st.sampled_from(list(DATATYPES)),
     "shape": st.lists(SIZES, max_size=5) | st.just([1, 2]) | st.just([2, 2])},
    optional={"contents": CONTENT},
)  # fmt: skip
RAW = st.lists(st.binary(max_size=40), max_size=3)


@given(st.lists(TENSOR, max_size=3), RAW, st.sampled_from(list(DATATYPES.values())))
def test_generated_requests_are_decoded_or_refused(tensors, raw, dtype):
    """Whatever comes, nothing but an array of the right kind or Refused goes out."""
    request = Request(raw_input_contents=raw)
    for tensor in tensors:
        request.inputs.add(**tensor)
    spec = TensorSpec(name="image", shape=[-1, 2], dtype=dtype)
    try:
        (x,) = decode(request, [spec])
    except Refused as error:
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT and len(str(error)) < 1000
    else:
        assert x.dtype == dtype and x.ndim == 2 and x.shape[1] == 2 and x.shape[0] >= 1


@given(st.lists(TENSOR, max_size=3), RAW)
def test_generated_answers_are_read_or_refused(tensors, raw):
    """A client must not fall over what a foreign server answers."""
    response = Response(raw_output_contents=raw)
    for tensor in tensors:
        response.outputs.add(**tensor)
    try:
        found = read_outputs(response)
    except Refused as error:
        assert len(str(error)) < 1000
    else:
        assert all(isinstance(x, np.ndarray) for x in found.values())


@given(st.data())
def test_one_change_of_a_good_request_is_refused_or_good_still(data):
    request = picture_request().SerializeToString()
    cut = data.draw(st.integers(0, len(request) - 1))
    changed = bytearray(request)
    changed[cut] = data.draw(st.integers(0, 255))
    try:
        got = Request.FromString(bytes(changed))
    except Exception:  # not a message any more: gRPC answers that
        return
    try:
        (x,) = decode(got, [PICTURE])
    except Refused:
        return
    assert x.shape == (1, 4, 4, 3) and x.dtype == np.float32

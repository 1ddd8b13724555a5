"""Requests that cannot be answered: each gets one clear status, and the agent goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from agent_tools import (
    MESSAGE_BYTES,
    Agent,
    ask,
    channel_to,
    infer_request,
    input_name,
    refusal,
    running_agent,
)

from runtime.wire.descriptors import DEVICE
from runtime.wire.tensors import read_outputs

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass
class Serving:
    """An agent that serves the tiny network, and a request it answers."""

    agent: Agent
    channel: Any
    input: str
    x: np.ndarray
    answer: np.ndarray

    def request(self, **fields: Any) -> Any:
        return infer_request("tiny", self.input, self.x, **fields)

    def refused(self, request: Any) -> tuple[grpc.StatusCode, str]:
        """How a request is refused; the good one must be answered right after it."""
        found = refusal(lambda: ask(self.channel, "ModelInfer", request))
        (output,) = read_outputs(ask(self.channel, "ModelInfer", self.request())).values()
        np.testing.assert_allclose(output[0], self.answer, atol=1e-5)
        return found


@pytest.fixture(scope="module")
def serving(
    tiny: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    store = tmp_path_factory.mktemp("requests") / "store"
    with (
        running_agent(store, load=[tiny_bundle]) as agent,
        channel_to(agent.address) as channel,
    ):
        name = input_name(channel, "tiny")
        yield Serving(agent, channel, name, tiny.input_for("tflite"), tiny.outputs_NK[0])
        assert agent.alive()


def test_a_wrong_dtype_is_named(serving: Serving) -> None:
    for x, sent in ((serving.x.astype(np.float64), "FP64"), (serving.x.astype(np.uint8), "UINT8")):
        code, text = serving.refused(infer_request("tiny", serving.input, x))
        assert code == INVALID and "FP32" in text and sent in text


def test_a_datatype_that_the_protocol_has_not(serving: Serving) -> None:
    request = serving.request()
    request.inputs[0].datatype = "COMPLEX"
    code, text = serving.refused(request)
    assert code == INVALID and "COMPLEX" in text


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (1, 3, 32, 32), (1, 32, 32, 4), (0, 32, 32, 3), (1, 1, 1, 1, 1)]
)
def test_a_wrong_shape_is_named(serving: Serving, shape: tuple[int, ...]) -> None:
    code, text = serving.refused(infer_request("tiny", serving.input, np.zeros(shape, np.float32)))
    assert code == INVALID and str(list(shape)) in text and "[1, 32, 32, 3]" in text


@pytest.mark.parametrize("shape", [[-1, 32, 32, 3], [1, -32, -32, 3], [2**62, 2**62, 2**62, 3]])
def test_a_shape_that_no_array_has(serving: Serving, shape: list[int]) -> None:
    request = serving.request()
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    code, text = serving.refused(request)
    assert code == INVALID and "shape" in text


def test_a_wrong_input_name_is_named(serving: Serving) -> None:
    code, text = serving.refused(infer_request("tiny", "pixels", serving.x))
    assert code == INVALID and "pixels" in text and serving.input in text


def test_a_long_name_in_another_script_does_not_hide_the_status(serving: Serving) -> None:
    code, text = serving.refused(infer_request("tiny", "画" * 3000, serving.x))
    assert code == INVALID and serving.input in text


def test_contents_and_raw_together(serving: Serving) -> None:
    request = serving.request()
    request.inputs[0].contents.fp32_contents.extend(serving.x.ravel().tolist())
    code, text = serving.refused(request)
    assert code == INVALID and "raw_input_contents" in text


def test_contents_alone_are_answered_like_raw(serving: Serving) -> None:
    request = serving.request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(serving.x.ravel().tolist())
    (output,) = read_outputs(ask(serving.channel, "ModelInfer", request)).values()
    np.testing.assert_allclose(output[0], serving.answer, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 32 * 32 * 3 * 4 - 1, 32 * 32 * 3 * 4 + 1])
def test_raw_contents_of_another_size(serving: Serving, size: int) -> None:
    request = serving.request()
    request.raw_input_contents[0] = bytes(size)
    code, text = serving.refused(request)
    assert code == INVALID and str(32 * 32 * 3 * 4) in text and str(size) in text


def test_no_contents_at_all(serving: Serving) -> None:
    request = serving.request()
    del request.raw_input_contents[:]
    assert serving.refused(request)[0] == INVALID


def test_the_input_twice_and_not_at_all(serving: Serving) -> None:
    twice = serving.request()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    none = serving.request()
    del none.inputs[:], none.raw_input_contents[:]
    assert serving.refused(twice)[0] == serving.refused(none)[0] == INVALID


def test_an_output_that_is_not_there(serving: Serving) -> None:
    request = serving.request()
    request.outputs.add(name="labels")
    code, text = serving.refused(request)
    assert code in (INVALID, MISSING) and "labels" in text


def test_an_unknown_model_with_the_nearest_name(serving: Serving) -> None:
    code, text = serving.refused(infer_request("tinny", serving.input, serving.x))
    assert code == MISSING and "'tiny'" in text


def test_an_unknown_version_names_the_one_there_is(serving: Serving) -> None:
    code, text = serving.refused(serving.request(model_version="7"))
    (version,) = ask(serving.channel, "ModelMetadata", name="tiny").versions
    assert code == MISSING and version in text
    assert ask(serving.channel, "ModelInfer", serving.request(model_version=version)).outputs


def test_a_load_of_what_is_not_in_the_store(serving: Serving) -> None:
    for name in ("elsewhere", "../tiny", "/etc", "", "tiny/coreml", "tiny/", "x" * 5000):
        code, text = refusal(
            lambda name=name: ask(serving.channel, "RepositoryModelLoad", model_name=name)
        )
        assert code in (MISSING, INVALID), (name, code, text)


def test_load_parameters_of_the_wrong_kind(serving: Serving) -> None:
    for name, value in (("threads", {"string_param": "many"}), ("threads", {"int64_param": 0}),
                        ("threads", {"int64_param": 10**9}), ("instances", {"int64_param": -1}),
                        ("config", {"string_param": "{}"})):  # fmt: skip
        code, text = refusal(
            lambda name=name, value=value: ask(
                serving.channel, "RepositoryModelLoad", model_name="tiny", parameters={name: value}
            )
        )
        assert code == INVALID and name in text


def test_a_call_the_agent_does_not_have(serving: Serving) -> None:
    for path in ("/inference.GRPCInferenceService/ModelStatistics", "/x/y"):
        raw = serving.channel.unary_unary(path)
        code, _ = refusal(lambda raw=raw: raw(b"", timeout=30))
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_message(serving: Serving) -> None:
    raw = serving.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for data in (b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe"):
        code, text = refusal(lambda data=data: raw(data, timeout=30))
        assert code == INVALID and "ModelInferRequest" in text


def test_a_message_over_the_limit(serving: Serving) -> None:
    """The agent's own limit: the channel's is far higher."""
    described = ask(serving.channel, "Describe", of=DEVICE)
    limit = described.limits.message_bytes
    assert 0 < limit < MESSAGE_BYTES // 2
    request = serving.request()
    request.raw_input_contents[0] = bytes(limit + 2**20)
    assert serving.refused(request)[0] == FULL

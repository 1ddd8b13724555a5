"""Server reflection, both versions: what a client learns is enough to call the server."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from server_tools import PATIENCE_S, calls_of, run, served

from runtime.serving.services.health import Health
from runtime.serving.services.reflection import Reflection
from runtime.wire.descriptors import (
    DEVICE,
    HEALTH,
    INFERENCE,
    REFLECTION,
    REFLECTION_ALPHA,
    SERVICES,
    methods,
)

NOT_FOUND, INVALID = 5, 3
both = pytest.mark.parametrize("version", [REFLECTION, REFLECTION_ALPHA])


def ask_all(version, *questions):
    """The answers to the questions, given in one stream."""
    answers = []

    async def work() -> None:
        request = methods(version)["ServerReflectionInfo"].request
        async with served({version: Reflection(version, SERVICES)}) as channel:
            stream = calls_of(channel, version)(
                "ServerReflectionInfo", [request(host="here", **each) for each in questions]
            )
            answers.extend([answer async for answer in stream])

    run(work())
    assert len(answers) == len(questions)
    return answers


@both
def test_it_lists_the_services(version):
    (answer,) = ask_all(version, {"list_services": ""})
    assert [s.name for s in answer.list_services_response.service] == sorted(SERVICES)
    assert answer.valid_host == "here" and answer.original_request.host == "here"


@both
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (INFERENCE, "open_inference.proto"),
        (f"{INFERENCE}.ModelInfer", "open_inference.proto"),
        ("inference.ModelInferRequest", "open_inference.proto"),
        ("inference.ModelInferRequest.InferInputTensor", "open_inference.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "health.proto"),
        (DEVICE, "device.proto"),
        (f"{DEVICE}.UploadBundle", "device.proto"),
        (REFLECTION, "reflection.proto"),
        (f"{REFLECTION_ALPHA}.ServerReflectionInfo", "grpc_reflection_v1alpha.proto"),
    ],
)
def test_a_symbol_leads_to_its_file_and_the_file_has_a_name(version, symbol, file):
    by_symbol, by_name = ask_all(
        version, {"file_containing_symbol": symbol}, {"file_by_filename": file}
    )
    (data,) = by_symbol.file_descriptor_response.file_descriptor_proto
    assert list(by_name.file_descriptor_response.file_descriptor_proto) == [data]
    assert descriptor_pb2.FileDescriptorProto.FromString(data).name == file


@both
@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_containing_symbol": "inference.Nothing"}, NOT_FOUND),
        ({"file_containing_symbol": f"{INFERENCE}.Nothing"}, NOT_FOUND),
        ({"file_containing_symbol": ""}, NOT_FOUND),
        ({"file_by_filename": "../../etc/passwd"}, NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.Nothing"}, NOT_FOUND),
        ({"file_containing_extension": {"containing_type": "inference.ModelInferRequest",
                                        "extension_number": 7}}, NOT_FOUND),
        ({}, INVALID),
    ],
)  # fmt: skip
def test_what_is_not_here_is_an_answer_and_the_stream_goes_on(version, question, code):
    wrong, right = ask_all(version, question, {"list_services": ""})
    assert wrong.error_response.error_code == code and wrong.error_response.error_message
    assert len(right.list_services_response.service) == len(SERVICES)


@both
def test_a_known_message_has_no_extensions(version):
    (answer,) = ask_all(version, {"all_extension_numbers_of_type": "inference.ModelInferRequest"})
    found = answer.all_extension_numbers_response
    assert found.base_type_name == "inference.ModelInferRequest"
    assert list(found.extension_number) == []


def test_a_client_that_knows_reflection_alone_can_call():
    """As grpcurl does: descriptors from the server, a call with classes made of them."""

    async def work() -> None:
        health = Health()
        health.set("m", True)
        services = {HEALTH: health, REFLECTION: Reflection(REFLECTION, SERVICES)}
        async with served(services) as channel:
            request = methods(REFLECTION)["ServerReflectionInfo"].request
            stream = calls_of(channel, REFLECTION)(
                "ServerReflectionInfo", [request(file_containing_symbol=HEALTH)]
            )
            answer = await stream.read()
            pool = descriptor_pool.DescriptorPool()
            for data in answer.file_descriptor_response.file_descriptor_proto:
                pool.AddSerializedFile(data)
            check = pool.FindServiceByName(HEALTH).methods_by_name["Check"]
            ask = message_factory.GetMessageClass(check.input_type)
            told = message_factory.GetMessageClass(check.output_type)
            call = channel.unary_unary(
                f"/{HEALTH}/Check",
                request_serializer=ask.SerializeToString,
                response_deserializer=told.FromString,
            )
            assert (await call(ask(service="m"), timeout=PATIENCE_S)).status == 1
            assert await stream.code() is grpc.StatusCode.OK

    run(work())

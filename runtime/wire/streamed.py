"""Requests and answers of ModelStreamInfer, where a call's own deadline and status do not reach.

A request may say in the int64 parameter `timeout` how many microseconds it may take, as Triton's
do. An answer with an error has its text as `error_message`, as there; beside the request's id its
`infer_response` has the string parameter STATUS with the name of the gRPC status that ModelInfer
would have ended with, and ABOUT where that has it.
"""

from __future__ import annotations

import grpc

from runtime.wire.descriptors import Message, message
from runtime.wire.refused import ABOUT, Refused, invalid

TIMEOUT = "timeout"
STATUS = "status"
_CODES = {code.name: code for code in grpc.StatusCode}


def put_timeout(request: Message, timeout_s: float) -> None:
    """Let a ModelInferRequest say how long it may take."""
    request.parameters[TIMEOUT].int64_param = max(1, int(timeout_s * 1e6))


def timeout_of(request: Message) -> float | None:
    """Seconds that a ModelInferRequest may take; None where it does not say.

    Raises Refused, INVALID_ARGUMENT, for what is no time.
    """
    if TIMEOUT not in request.parameters:
        return None
    given = request.parameters[TIMEOUT]
    if given.WhichOneof("parameter_choice") != "int64_param" or given.int64_param < 0:
        raise invalid(f"parameter '{TIMEOUT}': expected microseconds as an int64 of 0 or more")
    return given.int64_param / 1e6 or None  # 0 is Triton's word for none


def answer_of(response: Message) -> Message:
    """A ModelInferResponse as an answer of the stream."""
    return _STREAMED(infer_response=response)


def refusal_of(request: Message, refused: Refused) -> Message:
    """The answer to a request that is refused."""
    response = _INFER(model_name=request.model_name, id=request.id)
    response.parameters[STATUS].string_param = refused.code.name
    if refused.about:
        response.parameters[ABOUT].string_param = refused.about
    return _STREAMED(error_message=str(refused) or refused.code.name, infer_response=response)


def read_answer(streamed: Message) -> Message:
    """The ModelInferResponse of an answer. Raises Refused where it is an error."""
    response = streamed.infer_response
    if not streamed.error_message:
        return response
    parameters = response.parameters
    name = parameters[STATUS].string_param if STATUS in parameters else ""
    about = parameters[ABOUT].string_param if ABOUT in parameters else ""
    code = _CODES.get(name, grpc.StatusCode.UNKNOWN)
    raise Refused(code, streamed.error_message, about)


_INFER = message("inference.ModelInferResponse")
_STREAMED = message("inference.ModelStreamInferResponse")

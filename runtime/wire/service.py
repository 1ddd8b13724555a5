"""Services from plain objects: one async method a call, faults as gRPC statuses; and stubs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from inspect import isasyncgenfunction
from time import monotonic
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from runtime.errors import RuntimeFault
from runtime.wire.descriptors import Message, Method, methods
from runtime.wire.refused import ABOUT, Refused, invalid

log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
DETAILS_LIMIT = 2000  # the status travels in a header, which has a limit of its own


def handler(service: str, implementation: object) -> grpc.GenericRpcHandler[Any, Any]:
    """The grpc.aio handler of a service whose calls are the async methods of `implementation`.

    A unary call is `async def Name(request, context) -> response`, a call that streams its answer
    an async generator, or a coroutine that calls context.write; a client's stream comes as an async
    iterator. A call that the object does not have is answered UNIMPLEMENTED. Refused is answered
    with its code, RuntimeFault with INVALID_ARGUMENT, so are bytes that are no message, and
    anything else with INTERNAL and a log entry, without its text. At level DEBUG every call is
    logged, never its metadata or contents.
    """
    table = {
        method.name: _method_handler(method, getattr(implementation, method.name))
        for method in methods(service).values()
        if hasattr(implementation, method.name)
    }
    return grpc.method_handlers_generic_handler(service, table)


def call(channel: Any, method: Method) -> Any:
    """The multi-callable of a method on a channel, sync or aio."""
    kind = (
        ("stream" if method.client_streaming else "unary")
        + "_"
        + ("stream" if method.server_streaming else "unary")
    )
    return getattr(channel, kind)(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def _method_handler(
    method: Method, function: Callable[..., Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    guarded = _guarded_stream if isasyncgenfunction(function) else _guarded
    # Without a deserializer: gRPC's answer to bytes that are no message is INTERNAL.
    return makers[method.client_streaming, method.server_streaming](
        guarded(function, method), response_serializer=method.response.SerializeToString
    )


def _guarded(
    function: Callable[..., Awaitable[Message | None]], method: Method
) -> Callable[..., Any]:
    parse = _parser(method)

    @wraps(function)
    async def answer(data: Any, context: Context) -> Message | None:
        begun = monotonic()
        try:
            response = await function(parse(data), context)
        except Exception as error:
            await _abort(error, context, method, begun)
        _log_call(method, "OK", begun)
        return response

    return answer


def _guarded_stream(
    function: Callable[..., AsyncIterator[Message]], method: Method
) -> Callable[..., AsyncIterator[Message]]:
    parse = _parser(method)

    @wraps(function)
    async def answer(data: Any, context: Context) -> AsyncIterator[Message]:
        begun = monotonic()
        try:
            async for response in function(parse(data), context):
                yield response
        except Exception as error:
            await _abort(error, context, method, begun)
        _log_call(method, "OK", begun)

    return answer


def _parser(method: Method) -> Callable[[Any], Any]:
    """From what gRPC hands over, bytes or an iterator of them, to messages."""

    def one(data: bytes) -> Message:
        try:
            return method.request.FromString(data)
        except DecodeError as error:
            raise invalid(
                f"the bytes sent are no {method.request.DESCRIPTOR.full_name} message"
            ) from error

    async def each(stream: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for data in stream:
            yield one(data)

    return each if method.client_streaming else one


def as_refused(error: Exception, path: str) -> Refused:
    """The answer to an error of a call: its code, and a text that fits into a header."""
    about = ""
    if isinstance(error, Refused):
        code, text, about = error.code, str(error), error.about
    elif isinstance(error, RuntimeFault):
        code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    else:
        log.error("a call failed inside the server", exc_info=error, extra={"call": path})
        code, text = grpc.StatusCode.INTERNAL, "the server failed at this call; its log says how"
    return Refused(code, text.encode()[:DETAILS_LIMIT].decode(errors="ignore"), about)


async def _abort(error: Exception, context: Context, method: Method, begun: float) -> NoReturn:
    """Answer with the status of an error; always raises."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    refused = as_refused(error, method.path)
    trailing = ((ABOUT, refused.about),) if refused.about else ()
    _log_call(method, refused.code.name, begun)
    await context.abort(refused.code, str(refused), trailing)
    raise AssertionError("abort raises")


def _log_call(method: Method, status: str, begun: float) -> None:
    if log.isEnabledFor(logging.DEBUG):
        seconds = round(monotonic() - begun, 6)
        log.debug("call", extra={"call": method.path, "status": status, "seconds": seconds})

"""gRPC server reflection over the private pool: how grpcurl and its like learn the calls."""

# ruff: noqa: N802 -- the calls have the protocol's names
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from runtime.wire.descriptors import Message, methods, pool

Context = grpc.aio.ServicerContext[Any, Any]
NOT_FOUND: int = grpc.StatusCode.NOT_FOUND.value[0]
INVALID_ARGUMENT: int = grpc.StatusCode.INVALID_ARGUMENT.value[0]


class Reflection:
    """One version of the reflection service; both have the same messages under another package."""

    def __init__(self, service: str, services: Sequence[str]) -> None:
        """Answer as `service`, and list `services` as what the server has."""
        self._services = sorted(services)
        self._response = methods(service)["ServerReflectionInfo"].response
        self._answers: dict[str, Callable[[Message, Message], None]] = {
            "list_services": self._list_services,
            "file_by_filename": self._file_by_filename,
            "file_containing_symbol": self._file_containing_symbol,
            "file_containing_extension": self._file_containing_extension,
            "all_extension_numbers_of_type": self._all_extension_numbers,
        }

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[Message], context: Context
    ) -> AsyncIterator[Message]:
        """One answer for each question, in their order; a wrong one is answered with its error."""
        async for request in requests:
            response = self._response(valid_host=request.host, original_request=request)
            asked = request.WhichOneof("message_request")
            try:
                if asked is None:
                    _error(response, INVALID_ARGUMENT, "the request asks for nothing")
                else:
                    self._answers[asked](getattr(request, asked), response)
            except KeyError:  # what the pool raises
                _error(response, NOT_FOUND, f"{asked}: nothing of that name here")
            yield response

    def _list_services(self, _: str, response: Message) -> None:
        for name in self._services:
            response.list_services_response.service.add(name=name)

    def _file_by_filename(self, name: str, response: Message) -> None:
        _put_file(pool().FindFileByName(name), response)

    def _file_containing_symbol(self, symbol: str, response: Message) -> None:
        try:
            file = pool().FindFileContainingSymbol(symbol)
        except KeyError:  # it knows all but the calls of a service
            call = pool().FindMethodByName(symbol)
            file = call.containing_service.file
        _put_file(file, response)

    def _file_containing_extension(self, _: Message, response: Message) -> None:
        _error(response, NOT_FOUND, "there are no extensions here")

    def _all_extension_numbers(self, name: str, response: Message) -> None:
        """None of the messages here can be extended, so that a known one has no numbers."""
        found = pool().FindMessageTypeByName(name)
        response.all_extension_numbers_response.base_type_name = found.full_name


def _put_file(file: Any, response: Message) -> None:
    """The file's descriptor; none of ours imports another."""
    response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)


def _error(response: Message, code: int, text: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = text

"""What the blocking and the asyncio client share: whom they talk to, and the calls of a channel."""

from __future__ import annotations

from typing import Any

import grpc

from runtime.client.calls import Ask, Outgoing
from runtime.client.channel import Access, open_channel
from runtime.client.errors import fault_of
from runtime.wire.service import call


class Connection:
    """A channel of `package` (grpc or grpc.aio) to one agent; it connects with the first call.

    `input_names` remembers the only input of each (model, version). Raises RuntimeFault where the
    access cannot be right.
    """

    def __init__(self, access: Access | str, package: Any) -> None:
        self.access = Access(access) if isinstance(access, str) else access
        self.channel = open_channel(self.access, package)
        self.metadata = self.access.metadata()
        self.input_names: dict[tuple[str, str], str] = {}
        self._calls: dict[str, Any] = {}

    def callable_of(self, step: Ask) -> Any:
        """What gRPC calls for a step; made once, it costs more than a small call."""
        path = step.method.path
        if path not in self._calls:
            self._calls[path] = call(self.channel, step.method)
        return self._calls[path]

    def options(self, step: Ask) -> dict[str, Any]:
        """What every call is given besides its request."""
        return {"timeout": step.timeout_s, "metadata": self.metadata}

    def fault(self, error: Any, step: Ask) -> BaseException:
        """What to raise for a call that failed with a grpc.RpcError (whose class has no code)."""
        if isinstance(step.request, Outgoing) and step.request.error is not None:
            return step.request.error
        return fault_of(
            error.code() or grpc.StatusCode.UNKNOWN,
            error.details(),
            self.access,
            step.method.name,
            step.timeout_s,
        )


def whole(call: Any) -> Any:
    """The answer to a stream of ours on a blocking channel; the stream ends with us (Ctrl-C)."""
    try:
        return call.result()
    except grpc.FutureCancelledError:
        raise call from None
    finally:
        call.cancel()

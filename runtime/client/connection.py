"""What the blocking and the asyncio client share: whom they talk to, and the calls of a channel."""

from __future__ import annotations

from typing import Any

import grpc

from runtime.client.channel import Access, open_channel
from runtime.client.errors import AgentFault, fault_of
from runtime.client.steps import Ask, Outgoing
from runtime.errors import RuntimeFault
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
        self.closed = False
        self._calls: dict[str, Any] = {}

    def callable_of(self, step: Ask) -> Any:
        """What gRPC calls for a step; made once, it costs more than a small call.

        Raises RuntimeFault where the client is closed, AgentFault where no time is left.
        """
        if self.closed:
            raise self.gone()
        if step.timeout_s <= 0:
            raise self._fault(grpc.StatusCode.DEADLINE_EXCEEDED, None, step)
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
        return self._fault(error.code() or grpc.StatusCode.UNKNOWN, error.details(), step)

    def cancelled(self, step: Ask) -> AgentFault:
        """What to raise for a call that ended because the client was closed."""
        return self._fault(grpc.StatusCode.CANCELLED, None, step)

    def gone(self) -> RuntimeFault:
        """What to raise for a call of a client that was closed before."""
        return RuntimeFault(
            f"this client of {self.access.address} is closed; make another one for further calls"
        )

    def _fault(self, code: grpc.StatusCode, details: str | None, step: Ask) -> AgentFault:
        allowed = step.timeout_s if step.given_s is None else step.given_s
        return fault_of(code, details, self.access, step.method.name, allowed)


def whole(call: Any) -> Any:
    """The answer to a stream of ours on a blocking channel; the stream ends with us (Ctrl-C)."""
    try:
        return call.result()
    except grpc.FutureCancelledError:
        raise call from None
    finally:
        call.cancel()

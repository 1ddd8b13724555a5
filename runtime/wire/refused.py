"""A call answered with a gRPC status other than OK: the one error of everything that serves."""

from __future__ import annotations

import grpc

from runtime.errors import RuntimeFault

ABOUT = "edgevit-about"


class Refused(RuntimeFault):
    """Raised anywhere below a service, answered as `code` with the message as details.

    The message says what was expected, what came and what to do, and holds no secret: it goes to
    the caller. `about` is for what a program has to tell apart and the code does not; it travels
    as the trailing metadata ABOUT.
    """

    def __init__(self, code: grpc.StatusCode, message: str, about: str = "") -> None:
        super().__init__(message)
        self.code, self.about = code, about


def invalid(message: str) -> Refused:
    """INVALID_ARGUMENT: the request can never work as it is."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refused:
    """NOT_FOUND: no such model, bundle or output."""
    return Refused(grpc.StatusCode.NOT_FOUND, message)


def exhausted(message: str) -> Refused:
    """RESOURCE_EXHAUSTED: a limit of the agent; the same request may work later or elsewhere."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def unavailable(message: str) -> Refused:
    """UNAVAILABLE: not now; safe to try again."""
    return Refused(grpc.StatusCode.UNAVAILABLE, message)


def precondition(message: str) -> Refused:
    """FAILED_PRECONDITION: another call has to come first."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)

"""What a call is made of: questions to the agent, work on this machine, pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.wire.descriptors import Message, Method

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """One gRPC call; the answer to this step is its (last) response message, None if none came.

    `request` is a message, or an iterator of them where the client streams. `each` is told of every
    message of a streamed answer. `given_s` is what the caller allowed where this is a part of that.
    """

    method: Method
    request: Any
    timeout_s: float
    each: Callable[[Message], None] | None = None
    given_s: float | None = None


@dataclass(frozen=True)
class Work:
    """Something that takes a while on this machine; the answer is what it gives."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Wait:
    """A pause before the next step."""

    seconds: float


Step = Ask | Work | Wait
Plan = Generator[Step, Any, T]


class Allowance:
    """The seconds that a call of several steps may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """What the next step may take; at 0 it ends as too late."""
        return max(0.0, self._end - time.monotonic())


class Outgoing(Iterator[Message]):
    """The messages of a client's stream. gRPC hides what goes wrong in there, so it is kept here.

    The stream then just ends; who started the call raises `error`.
    """

    def __init__(self, messages: Iterator[Message]) -> None:
        self._messages = messages
        self.error: BaseException | None = None

    def __next__(self) -> Message:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise StopIteration from error

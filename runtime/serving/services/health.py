"""grpc.health.v1: whether the server, a service or a model takes calls, asked once or watched."""

# ruff: noqa: N802 -- the calls have the protocol's names
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from runtime.wire.descriptors import Message, message
from runtime.wire.refused import exhausted, not_found

Context = grpc.aio.ServicerContext[Any, Any]

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)  # ServingStatus of the protocol
WATCHERS = 64
"""Watches at once: they take no token and never end, and calls at once are bounded."""
LONGEST_NAME = 256

Response = message("grpc.health.v1.HealthCheckResponse")


class Health:
    """The states that probes ask for, by name; "" is the whole server. Of one event loop."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._states: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._watchers = 0
        self._draining = False

    def serving(self, name: str = "") -> bool:
        """Whether `name` takes calls now."""
        return self._states.get(name) == SERVING

    def set(self, name: str, serving: bool) -> None:
        """Tell the state of a name; during a drain it stays NOT_SERVING."""
        state = SERVING if serving and not self._draining else NOT_SERVING
        if self._states.get(name) != state:
            self._states[name] = state
            self._tell()

    def drain(self) -> None:
        """Everything becomes NOT_SERVING for good, and every watch ends after saying so."""
        self._draining = True
        self._states = dict.fromkeys(self._states, NOT_SERVING)
        self._tell()

    async def Check(self, request: Message, context: Context) -> Message:
        """The state of a name now. Refused with NOT_FOUND where it is unknown."""
        state = self._states.get(request.service)
        if state is None:
            raise not_found(f"no service or model '{request.service[:128]}' here")
        return Response(status=state)

    async def Watch(self, request: Message, context: Context) -> AsyncIterator[Message]:
        """The state of a name, known or not, and every change of it."""
        if len(request.service) > LONGEST_NAME:  # kept as long as the watch; no token was asked for
            raise not_found(f"no service or model '{request.service[:128]}...' here")
        if self._watchers >= WATCHERS:
            raise exhausted(f"{WATCHERS} watches are open already; use Check")
        self._watchers += 1
        try:
            told = None
            while True:
                changed = self._changed
                state = self._states.get(request.service, SERVICE_UNKNOWN)
                if state != told:
                    yield Response(status=state)
                    told = state
                    continue  # it may have changed while that was sent
                if self._draining:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def _tell(self) -> None:
        """Wake every watch; the next change wakes by an event of its own."""
        self._changed.set()
        self._changed = asyncio.Event()

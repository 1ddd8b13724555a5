"""How much an agent takes: of one message, of a bundle, of calls at once, of its disk."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """The bounds of an agent, in bytes or counts. Beyond one the answer is RESOURCE_EXHAUSTED.

    store_bytes of None leaves the disk itself as the bound. chunk_bytes is advice to who uploads;
    message_bytes bounds a chunk.
    """

    message_bytes: int = 64 * MIB
    bundle_bytes: int = 4 * GIB
    bundle_files: int = 10_000
    chunk_bytes: int = MIB
    concurrent_calls: int = 256
    store_bytes: int | None = None

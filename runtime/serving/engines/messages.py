"""What an agent and its engine processes say to each other, over a stream socket.

To the engine: the rows of a run, whose input lies in the shared memory. Back: READY once, with
JSON, then to each run DONE, the output lying in the shared memory, or FAILED with a text.
"""

from __future__ import annotations

from struct import Struct

RUN = Struct("<I")
"""Rows."""
HEADER = Struct("<BxxxIQ")
"""Kind, bytes of text behind the header, nanoseconds of the engine's run."""

READY, DONE, FAILED = 1, 2, 3

"""One answer of the whole model: pictures to all sub-models, their blocks to the fusion head."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

import grpc
import numpy as np
from numpy.typing import NDArray

from partition.serving.ensemble import Ensemble
from partition.serving.fanout import FanOut, Gathered
from partition.serving.request_bytes import Asked, InputName, PictureBytes
from runtime.sessions.base import Array
from runtime.wire.refused import Refused

ALLOWANCE_S = 0.02  # of a request's time, for the fusion and the way back
ALLOWANCE_SHARE = 0.2  # of a shorter one


@dataclass(frozen=True)
class Fused:
    """Logits (rows, classes), and what the sub-models answered; gathered_ns: by perf_counter_ns."""

    logits: NDArray[np.float32]
    gathered: Gathered
    gathered_ns: int


class FusedModel:
    """The sub-models and their fusion head, as one model."""

    def __init__(self, ensemble: Ensemble, fan_out: FanOut, patience_s: float) -> None:
        """patience_s is how long a worker may take, where the request leaves it the time."""
        self._ensemble, self._fan_out = ensemble, fan_out
        self._patience_s = patience_s

    async def run(self, x: Array | InputName, timeout_s: float | None) -> Fused:
        """Logits for pictures as `ensemble.input` says, rows first, or for what workers sense.

        timeout_s is the request's.

        A sub-model that does not answer in time is a block of zeros, as in the head's training.
        Raises Refused where none answers.
        """
        if timeout_s is not None and timeout_s <= 0:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "the request waited longer than its deadline and was not run",
            )
        asked: Asked = x if isinstance(x, InputName) else PictureBytes(x, self._ensemble.input)
        patience_s = self._patience_s
        if timeout_s is not None:
            kept_s = min(ALLOWANCE_S, ALLOWANCE_SHARE * timeout_s)
            patience_s = min(patience_s, timeout_s - kept_s)
        gathered = await self._fan_out.gather(asked, patience_s)
        gathered_ns = perf_counter_ns()
        logits = self._ensemble.head(gathered.blocks)
        return Fused(logits, gathered, gathered_ns)

"""What a worker answers: its block of numbers, checked, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from runtime.wire.descriptors import Message
from runtime.wire.input_ref import INPUT_AGE
from runtime.wire.refused import Refused
from runtime.wire.tensors import read_outputs


@dataclass(frozen=True)
class Reply:
    """The block (rows, width), and where its time went.

    elapsed_us is as the coordinator saw it, worker_us the worker's own time, compute_us its engine
    alone. place is the device. input_age_us is how old the input was that it sensed, None where it
    was sent one.
    """

    block: NDArray[np.float32]
    place: str
    elapsed_us: int
    worker_us: int
    compute_us: int
    input_age_us: int | None = None


class NoReply(Exception):  # noqa: N818 -- no fault of the program: what devices do
    """A worker gave no answer that can be used; says why. code is gRPC's where it gave one."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(reason)
        self.code = code

    def again(self) -> NoReply:
        """The same for one more who waits: an error that was raised holds on to where."""
        return NoReply(str(self), self.code)


class StrangeReply(NoReply):
    """The answer is not one of the sub-model that the plan names."""


class BadInput(NoReply):
    """There is no answer to this input, and the worker is as good as before."""


def read_reply(
    response: Message, digest: str, rows: int, width: int, place: str, elapsed_us: int
) -> Reply:
    """Check an answer against the plan. Raises StrangeReply, and BadInput where it overflows."""
    told = response.parameters["bundle_digest"].string_param
    if told != digest:
        raise StrangeReply(f"it answers with the bundle {told[:12] or '(none)'}, not {digest[:12]}")
    try:
        outputs = list(read_outputs(response).values())
    except Refused as error:
        raise StrangeReply(f"its answer cannot be read: {error}") from error
    if len(outputs) != 1 or outputs[0].dtype != np.float32 or outputs[0].size != rows * width:
        got = ", ".join(f"{y.dtype} {list(y.shape)}" for y in outputs)
        raise StrangeReply(f"expected {rows} x {width} numbers of float32, got {got or 'nothing'}")
    block = outputs[0].reshape(rows, width)
    if not np.isfinite(block).all():
        # Large numbers overflow; who may send a picture shall not send workers away with it.
        raise BadInput("it answers with NaN or infinity", grpc.StatusCode.INVALID_ARGUMENT)
    worker_us = response.parameters["total_us"].int64_param
    compute_us = response.parameters["compute_us"].int64_param
    sensed = INPUT_AGE in response.parameters
    age_us = response.parameters[INPUT_AGE].int64_param if sensed else None
    return Reply(block, place, elapsed_us, worker_us, compute_us, age_us)

# ruff: noqa: N802 -- the calls have the protocol's names
"""inference.GRPCInferenceService of the whole model: any client of the protocol may ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio
import numpy as np

from partition.serving.ensemble import Ensemble
from partition.serving.metrics import CoordinatorWatcher
from partition.serving.request_bytes import InputName
from partition.serving.turns import Turn, Turns
from partition.serving.worker_link import WorkerLink
from runtime.environment import edgevit_version
from runtime.serving.services.inference import check_parameters
from runtime.sessions.base import Array
from runtime.wire.descriptors import Message, message
from runtime.wire.input_ref import INPUT_AGE, input_ref
from runtime.wire.refused import Refused, invalid, not_found
from runtime.wire.tensors import decode, metadata_of, put_output, requested

Context = grpc.aio.ServicerContext[Any, Any]

PLATFORM = "edgevit_cluster"
READY, UNAVAILABLE = "READY", "UNAVAILABLE"
BROADCAST, LOCAL_INPUT = "broadcast", "local-input"  # how workers come by their input
# The stages of a request, one after another, which make up its total.
STAGES = (
    "decode_us", "queue_us", "network_us", "worker_queue_us", "compute_us", "wait_us", "fuse_us",
)  # fmt: skip

States = Callable[[], Iterable[tuple[WorkerLink, bool]]]


class CoordinatorService:
    """The calls of the protocol. Loading and unloading are for the agents, and not offered."""

    def __init__(
        self,
        ensemble: Ensemble,
        turns: Turns,
        sensed: Turns,
        states: States,
        ready: Callable[[], bool],
        watcher: CoordinatorWatcher,
    ) -> None:
        """`turns` are for pictures, `sensed` for names of what workers sense, one at a time.

        `states` are the workers and whether they may be asked; `ready`: any of them may be.
        """
        self._ensemble, self._turns, self._sensed = ensemble, turns, sensed
        self._states = states
        self._ready, self._watcher = ready, watcher

    async def ServerLive(self, request: Message, context: Context) -> Message:
        """Yes: it answers."""
        return _LIVE(live=True)

    async def ServerReady(self, request: Message, context: Context) -> Message:
        """Whether there would be an answer, degraded or not."""
        return _SERVER_READY(ready=self._ready())

    async def ModelReady(self, request: Message, context: Context) -> Message:
        """The same of the one model; no for another."""
        try:
            self._check_model(request.name, request.version)
        except Refused:
            return _MODEL_READY(ready=False)
        return _MODEL_READY(ready=self._ready())

    async def ServerMetadata(self, request: Message, context: Context) -> Message:
        """Name and version of the server; it has no extension."""
        return _SERVER_METADATA(name="edgevit", version=edgevit_version())

    async def ModelMetadata(self, request: Message, context: Context) -> Message:
        """Input and output of the whole model, its labels, plan and sub-models.

        The property `workers` says how each SUBMODEL@DEVICE is at this moment, as JSON.
        """
        self._check_model(request.name, request.version)
        ensemble = self._ensemble
        workers = {worker.name: worker.facts(usable) for worker, usable in self._states()}
        return _MODEL_METADATA(
            name=ensemble.name,
            versions=[ensemble.version],
            platform=PLATFORM,
            inputs=[metadata_of(ensemble.input)],
            outputs=[metadata_of(ensemble.output)],
            properties={**ensemble.properties, "workers": json.dumps(workers)},
        )

    async def ModelInfer(self, request: Message, context: Context) -> Message:
        """Ask every sub-model, fuse, and say what was missing."""
        begun = perf_counter_ns()
        status, degraded = grpc.StatusCode.INTERNAL, False
        stages: dict[str, int] = {}
        try:
            x = self._asked(request)
            decoded = perf_counter_ns()
            sensed = isinstance(x, InputName)
            turns = self._sensed if sensed else self._turns
            turn = await turns.take(x, context.time_remaining())
            degraded = bool(turn.fused.gathered.missing)
            response = self._answer(request, turn, sensed)
            ended = perf_counter_ns()
            stages = _stages(turn) | {
                "decode_us": (decoded - begun) // 1000,
                "fuse_us": (ended - turn.fused.gathered_ns) // 1000,
                "total_us": (ended - begun) // 1000,
            }
            for stage, microseconds in stages.items():
                response.parameters[stage].int64_param = microseconds
            status = grpc.StatusCode.OK
            return response
        except Refused as error:
            status = error.code
            raise
        except asyncio.CancelledError:  # by the caller or its deadline
            status = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._watcher.request(status.name, degraded, stages)

    async def RepositoryIndex(self, request: Message, context: Context) -> Message:
        """The model, then its workers as MODEL/SUBMODEL@DEVICE with the reasons of their states."""
        ensemble = self._ensemble
        states = [(worker.name, usable, worker.reason) for worker, usable in self._states()]
        rows = [(ensemble.name, ensemble.version, self._ready(), "")]
        rows += [(f"{ensemble.name}/{n}", "", usable, reason) for n, usable, reason in states]
        response = _INDEX()
        for name, version, ready, reason in rows:
            if ready or not request.ready:
                state = READY if ready else UNAVAILABLE
                response.models.add(name=name, version=version, state=state, reason=reason)
        return response

    def _asked(self, request: Message) -> Array | InputName:
        """The pictures of a request, or what its workers are to sense. Raises Refused."""
        self._check_model(request.model_name, request.model_version)
        ensemble = self._ensemble
        check_parameters(request)
        requested(request, [ensemble.output])
        name = input_ref(request)
        if name is not None:
            return InputName(name)
        (x,) = decode(request, [ensemble.input])
        if len(x) > ensemble.most:
            raise invalid(
                f"input '{ensemble.input.name}': expected at most {ensemble.most} rows in a "
                f"request, got {len(x)}; send them in parts"
            )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            # Its block would be no numbers, and those of the requests that go with it neither.
            raise invalid(
                f"input '{ensemble.input.name}': it has NaN or infinity; mend the picture"
            )
        return x

    def _answer(self, request: Message, turn: Turn, sensed: bool) -> Message:
        """The answer but for its timings; `sensed`: the workers were sent no picture."""
        ensemble, gathered = self._ensemble, turn.fused.gathered
        response = _INFER(
            model_name=request.model_name, model_version=ensemble.version, id=request.id
        )
        logits = turn.fused.logits[turn.first : turn.first + turn.rows]
        put_output(response, ensemble.output.name, logits)
        name, reply = gathered.straggler
        parameters = response.parameters
        parameters["batch_size"].int64_param = turn.together
        parameters["degraded"].bool_param = bool(gathered.missing)
        parameters["missing"].string_param = json.dumps(list(gathered.missing))
        if gathered.missing:
            parameters["missing_reasons"].string_param = json.dumps(gathered.missing)
        blind = ensemble.blind(gathered.missing) if gathered.missing else []
        parameters["blind_classes"].string_param = json.dumps(blind)
        parameters["straggler"].string_param = f"{name}@{reply.place}"
        parameters["plan_digest"].string_param = ensemble.digest
        parameters["mode"].string_param = LOCAL_INPUT if sensed else BROADCAST
        if sensed and (ages_us := gathered.input_ages_us):
            parameters[INPUT_AGE].int64_param = max(ages_us)
            parameters["input_spread_us"].int64_param = max(ages_us) - min(ages_us)
        return response

    def _check_model(self, name: str, version: str) -> None:
        """Raises Refused, NOT_FOUND, for another model or version than the one there is."""
        ensemble = self._ensemble
        if name != ensemble.name:
            raise not_found(f"no model '{name[:140]}' here, only '{ensemble.name}'")
        if version not in ("", ensemble.version):
            raise not_found(
                f"'{name}' has the version {ensemble.version} of its plan, not '{version[:80]}'"
            )


def _stages(turn: Turn) -> dict[str, int]:
    """Microseconds of each stage between decoding a request and fusing.

    network_us, worker_queue_us and compute_us are of the sub-model that answered last: the way
    there and back, its time at the agent but for the engine's run, and that run. wait_us is what
    was waited beyond it, for sub-models that did not answer or before a replica was asked.
    """
    fused, (_, reply) = turn.fused, turn.fused.gathered.straggler
    beyond = fused.gathered.elapsed_us - reply.elapsed_us
    return {
        "queue_us": turn.queue_us,
        "network_us": max(0, reply.elapsed_us - reply.worker_us),
        "worker_queue_us": max(0, reply.worker_us - reply.compute_us),
        "compute_us": reply.compute_us,
        "wait_us": max(0, beyond),
    }


_LIVE = message("inference.ServerLiveResponse")
_SERVER_READY = message("inference.ServerReadyResponse")
_MODEL_READY = message("inference.ModelReadyResponse")
_SERVER_METADATA = message("inference.ServerMetadataResponse")
_MODEL_METADATA = message("inference.ModelMetadataResponse")
_INFER = message("inference.ModelInferResponse")
_INDEX = message("inference.RepositoryIndexResponse")

# ruff: noqa: N802 -- the calls have the protocol's names
"""inference.GRPCInferenceService: the Open Inference Protocol over the models that are loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from runtime.environment import edgevit_version
from runtime.serving.inputs_folder import InputsFolder
from runtime.serving.model import READY, Answer, ServedModel
from runtime.serving.models import Models
from runtime.serving.observer import Observer
from runtime.serving.services.infer_stream import answer_in_order
from runtime.sessions.base import Array
from runtime.wire.descriptors import Message, message
from runtime.wire.input_ref import INPUT_AGE, input_ref, input_refused
from runtime.wire.refused import Refused, invalid
from runtime.wire.tensors import decode, metadata_of, put_output, requested

Context = grpc.aio.ServicerContext[Any, Any]

EXTENSIONS = ("model_repository",)
LOAD_PARAMETERS = ("threads", "instances")
DECIMAL = re.compile("[0-9]{1,9}", re.ASCII)
MOST_OF_EITHER = 1024  # far beyond any device; a typo must not start a thousand threads
# Parameters of Triton that would change the answer. Others (priority, timeout) are hints.
NOT_HERE = {
    "sequence_id": "models here keep no state between requests",
    "sequence_start": "models here keep no state between requests",
    "sequence_end": "models here keep no state between requests",
    "shared_memory_region": "shared memory is not offered; send raw contents",
    "classification": "outputs are sent as they are; sort them at the client",
}


class InferenceService:
    """The ten calls. What they refuse is raised as Refused, which runtime.wire.service answers.

    `answered` counts the inference requests to models that are there, whatever the answer was.
    """

    def __init__(
        self,
        models: Models,
        observer: Observer,
        ready: Callable[[], bool],
        inputs: InputsFolder | None = None,
    ) -> None:
        """Serve `models`; `ready` tells whether the server as a whole takes calls.

        `inputs` are those that a request may name instead of sending one.
        """
        self._models, self._inputs = models, inputs
        self._observer = observer
        self._ready = ready
        self._ending = asyncio.Event()
        self.answered = 0

    def drain(self) -> None:
        """Let streams end once they have answered what they were asked."""
        self._ending.set()

    async def ServerLive(self, request: Message, context: Context) -> Message:
        """Yes: it answers."""
        return _LIVE(live=True)

    async def ServerReady(self, request: Message, context: Context) -> Message:
        """Whether the models asked for at the start are loaded, and no drain has begun."""
        return _SERVER_READY(ready=self._ready())

    async def ModelReady(self, request: Message, context: Context) -> Message:
        """Whether a model takes requests; no for one that is not there."""
        try:
            model = self._models.find(request.name, request.version)
        except Refused:
            return _MODEL_READY(ready=False)
        return _MODEL_READY(ready=model.state == READY)

    async def ServerMetadata(self, request: Message, context: Context) -> Message:
        """Name, version and extensions of the server."""
        return _SERVER_METADATA(name="edgevit", version=edgevit_version(), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Message, context: Context) -> Message:
        """Inputs and outputs of a loaded model, and what its bundle tells about it."""
        model = self._models.find(request.name, request.version)
        return _MODEL_METADATA(
            name=model.name,
            versions=[model.version],
            platform=model.platform,
            inputs=[metadata_of(spec) for spec in model.inputs],
            outputs=[metadata_of(spec) for spec in model.outputs],
            properties=model.properties,
        )

    async def ModelInfer(self, request: Message, context: Context) -> Message:
        """Run a model once, or as a part of a batch; on what is sent or on what is here."""
        return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(self, requests: AsyncIterator[Message], context: Context) -> None:
        """The same of many requests, which are answered in their order."""
        await answer_in_order(requests, context, self._infer, self._ending)

    async def _infer(self, request: Message, timeout_s: float | None) -> Message:
        """Answer a request that may take timeout_s. Raises Refused."""
        begun = perf_counter_ns()
        model = self._models.find(request.model_name, request.model_version)
        status, timings = grpc.StatusCode.INTERNAL, None
        try:
            check_parameters(request)
            wanted = requested(request, model.outputs)
            name = input_ref(request)
            if name is None:
                x, age_us = decode(request, model.inputs), None
            else:
                x, age_us = await self._sensed(name, model)
            answer = await model.infer(x, timeout_s=timeout_s)
            timings = answer.timings
            response = _answer(request, model, answer, wanted)
            if age_us is not None:
                response.parameters[INPUT_AGE].int64_param = age_us
            total_us = (perf_counter_ns() - begun) // 1000
            response.parameters["total_us"].int64_param = total_us
            status = grpc.StatusCode.OK
            return response
        except Refused as error:
            status = error.code
            raise
        except asyncio.CancelledError:  # by the caller or its deadline
            status = grpc.StatusCode.CANCELLED
            raise
        finally:
            self.answered += 1
            self._observer.request(
                model.name, model.target, status.name, timings, (perf_counter_ns() - begun) // 1000
            )

    async def RepositoryIndex(self, request: Message, context: Context) -> Message:
        """Every model that is loaded or could be, with its state."""
        _check_repository(request)
        response = _INDEX()
        for entry in self._models.index():
            if entry.state == READY or not request.ready:
                response.models.add(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
        return response

    async def RepositoryModelLoad(self, request: Message, context: Context) -> Message:
        """Load a model, or load it anew with other settings; answered when it is ready."""
        _check_repository(request)
        given = {name: _load_parameter(name, value) for name, value in request.parameters.items()}
        await self._models.load(request.model_name, **given)
        return _LOADED()

    async def RepositoryModelUnload(self, request: Message, context: Context) -> Message:
        """Unload a model; answered when its requests are done and its engine is gone."""
        _check_repository(request)
        for name in request.parameters:
            if name != "unload_dependents":  # stock clients always say it; models have none here
                raise invalid(f"expected no parameters, got '{name[:80]}'")
        await self._models.unload(request.model_name)
        return _UNLOADED()

    async def _sensed(self, name: str, model: ServedModel) -> tuple[list[Array], int]:
        """The input of this device that a request names, and its age in us. Raises Refused."""
        if self._inputs is None:
            raise input_refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this agent has no inputs of its own, so no '{name}'; start it with --inputs DIR, "
                "or send the input",
            )
        if len(model.inputs) != 1:
            raise input_refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"'{model.name}' has {len(model.inputs)} inputs; a name stands for one; send them",
            )
        x, age_us = await self._inputs.read(name, model.inputs[0])
        return [x], age_us


def _answer(request: Message, model: ServedModel, answer: Answer, wanted: list[int]) -> Message:
    """The ModelInferResponse but for total_us."""
    response = _INFER(model_name=request.model_name, model_version=model.version, id=request.id)
    for index in wanted:
        put_output(response, model.outputs[index].name, answer.outputs[index])
    timings, parameters = answer.timings, response.parameters
    parameters["queue_us"].int64_param = timings.queue_us
    parameters["decode_us"].int64_param = timings.decode_us
    parameters["compute_us"].int64_param = timings.compute_us
    parameters["encode_us"].int64_param = timings.encode_us
    parameters["batch_size"].int64_param = timings.batch_size
    parameters["engine"].string_param = model.engine
    parameters["target"].string_param = model.target
    parameters["bundle_digest"].string_param = model.digest
    return response


def check_parameters(request: Message) -> None:
    """Refuse what would be answered wrongly if it were passed over. Raises Refused."""
    for part in (request, *request.inputs, *request.outputs):
        for name in part.parameters:
            if name in NOT_HERE:
                raise invalid(f"parameter '{name}': {NOT_HERE[name]}")


def _check_repository(request: Message) -> None:
    if request.repository_name:
        raise invalid(
            f"expected no repository name, got '{request.repository_name[:80]}': an agent has one "
            "repository, its store"
        )


def _load_parameter(name: str, value: Message) -> int:
    """A parameter of RepositoryModelLoad as a number, from an int64 or its decimal text."""
    if name == "config" or name.startswith("file:"):
        raise invalid(
            f"parameter '{name[:80]}': a bundle says itself how it is served; upload another one "
            "with edgevit.v1.DeviceService, and choose a target as NAME/TARGET"
        )
    if name not in LOAD_PARAMETERS:
        raise invalid(f"expected the parameters {', '.join(LOAD_PARAMETERS)}, got '{name[:80]}'")
    kind = value.WhichOneof("parameter_choice")
    number: int | None = value.int64_param if kind == "int64_param" else None
    if kind == "string_param" and DECIMAL.fullmatch(value.string_param):
        number = int(value.string_param)
    if number is None or not 1 <= number <= MOST_OF_EITHER:
        raise invalid(f"parameter '{name}': expected a whole number from 1 to {MOST_OF_EITHER}")
    return number


_LIVE = message("inference.ServerLiveResponse")
_SERVER_READY = message("inference.ServerReadyResponse")
_MODEL_READY = message("inference.ModelReadyResponse")
_SERVER_METADATA = message("inference.ServerMetadataResponse")
_MODEL_METADATA = message("inference.ModelMetadataResponse")
_INFER = message("inference.ModelInferResponse")
_INDEX = message("inference.RepositoryIndexResponse")
_LOADED = message("inference.RepositoryModelLoadResponse")
_UNLOADED = message("inference.RepositoryModelUnloadResponse")

"""A coordinator as its callers see it: what it says of itself, and its answers with their times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from partition.cluster.bench_record import CLIENT
from partition.cluster.running import Running
from partition.serving.service import PLATFORM, STAGES
from runtime.client.channel import open_channel
from runtime.client.errors import fault_of
from runtime.client.results import parameters_of
from runtime.errors import CheckFailed, RuntimeFault
from runtime.sessions.base import Array
from runtime.tensor_spec import Layout, TensorSpec
from runtime.wire.descriptors import INFERENCE, Message, methods
from runtime.wire.input_ref import INPUT_AGE, put_input_ref
from runtime.wire.refused import Refused
from runtime.wire.service import call
from runtime.wire.tensors import DATATYPES, put_input, read_outputs

REQUEST_S = 30.0


class WorkerView(BaseModel):
    """A worker as its coordinator tells of it; what it does not know is None.

    p50_us is of its last answers, last_heard_s the seconds since anything came from its agent.
    """

    usable: bool
    reason: str = ""
    p50_us: float | None = None
    last_heard_s: float | None = None
    generation: int | None = None
    model: str | None = None


@dataclass(frozen=True)
class CoordinatorView:
    """What a coordinator says of itself; workers are by SUBMODEL@DEVICE."""

    model: str
    version: str
    plan_digest: str
    input: TensorSpec
    ready: bool
    workers: Mapping[str, WorkerView]


@dataclass(frozen=True)
class ClusterAnswer:
    """One answer: logits (rows, classes), and what is said of it. Times are milliseconds.

    elapsed_ms is as the caller saw it, total_ms the coordinator's own; stages_ms are those of
    STAGES, by their names without the unit. missing are the sub-models that have no part in it,
    with the reasons; blind are the classes that only they know. input_age_ms and input_spread_ms
    are of inputs that the workers took themselves.
    """

    logits: Array
    elapsed_ms: float
    total_ms: float
    stages_ms: Mapping[str, float]
    missing: Mapping[str, str]
    blind: tuple[int, ...]
    straggler: str
    together: int
    plan_digest: str
    mode: str | None
    input_age_ms: float | None
    input_spread_ms: float | None

    @property
    def degraded(self) -> bool:
        """Whether a sub-model is missing in it."""
        return bool(self.missing)

    @property
    def all_stages_ms(self) -> dict[str, float]:
        """From the caller and back, in order: before those of the coordinator the way to it."""
        return {CLIENT: self.elapsed_ms - self.total_ms, **self.stages_ms}


class NoAnswer(CheckFailed):
    """The coordinator gave no answer; `status` is gRPC's, `short` the reason in a few words."""

    def __init__(self, text: str, status: str, short: str) -> None:
        super().__init__(text)
        self.status, self.short = status, short


class Caller:
    """Asks one coordinator; never twice, so that every time it tells is of one request.

    It may be used from several threads. Raises CheckFailed where there is no coordinator.
    """

    def __init__(self, running: Running) -> None:
        self._running = running
        self._access = running.asked().access()
        self._channel = open_channel(self._access, grpc, [("grpc.enable_retries", 0)])
        self._metadata = self._access.metadata()
        self._infer = call(self._channel, _INFER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that are under way end."""
        self._channel.close()

    def look(self, timeout_s: float) -> CoordinatorView:
        """What it serves and how its workers are. Raises NoAnswer, CheckFailed."""
        index = self._ask("RepositoryIndex", timeout_s)
        model = index.models[0].name if index.models else ""
        about = self._ask("ModelMetadata", timeout_s, name=model) if model else None
        if about is None or about.platform != PLATFORM:
            raise CheckFailed(
                f"what answers at {self._access.address} is no coordinator; start one: "
                f"{self._running.launch}"
            )
        return CoordinatorView(
            model=model,
            version=", ".join(about.versions),
            plan_digest=about.properties["plan_digest"],
            input=_input(about),
            ready=index.models[0].state == "READY",
            workers=self._workers(about, index),
        )

    def check(self, view: CoordinatorView) -> None:
        """Raises CheckFailed where the coordinator serves another plan."""
        if view.plan_digest != self._running.plan.digest:
            raise CheckFailed(self.other_plan(view))

    def other_plan(self, view: CoordinatorView) -> str:
        """The words for a coordinator of another plan."""
        plan = self._running.plan
        return (
            f"the coordinator at {self._access.address} serves the plan {view.plan_digest[:12]}, "
            f"and {plan.path} is {plan.digest[:12]}; start it anew: {self._running.launch}"
        )

    def request(self, view: CoordinatorView, x: Array | None, input_ref: str | None) -> Message:
        """The request with a batch `x` as `view.input` says, or with the name of an input."""
        request: Message = _INFER.request(model_name=view.model)
        if input_ref is not None:
            put_input_ref(request, input_ref)
        if x is not None:
            put_input(request, view.input.name, x)
        return request

    def infer(self, request: Message, timeout_s: float = REQUEST_S) -> ClusterAnswer:
        """One answer. Raises NoAnswer, or RuntimeFault where it cannot be read."""
        begun = perf_counter_ns()
        try:
            response = self._infer(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._no_answer(error, _INFER.name, timeout_s) from error
        return _answer(response, (perf_counter_ns() - begun) / 1e6)

    def logits_of(self, answer: ClusterAnswer, classes: int) -> Array:
        """The logits of an answer to one picture. Raises CheckFailed where they are not right."""
        logits = answer.logits.reshape(-1)
        if len(logits) != classes or not np.isfinite(logits).all():
            raise CheckFailed(
                f"the coordinator at {self._access.address} answers with {len(logits)} numbers, "
                f"expected {classes} finite logits of one picture"
            )
        return logits

    def _ask(self, name: str, timeout_s: float, /, **fields: Any) -> Message:
        method = methods(INFERENCE)[name]
        ask = call(self._channel, method)
        try:
            return ask(method.request(**fields), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._no_answer(error, name, timeout_s) from error

    def _no_answer(self, error: Any, name: str, timeout_s: float) -> NoAnswer:
        """What to say of a call that failed with a grpc.RpcError (whose class has no code)."""
        code, address = error.code() or grpc.StatusCode.UNKNOWN, self._access.address
        fault = fault_of(code, error.details(), self._access, name, timeout_s)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or fault.short in _UNHEARD:
            text = (
                f"the coordinator of {self._running.plan.path} does not answer at {address} "
                f"({fault.short}). Start the cluster: {self._running.launch}"
            )
        elif code is grpc.StatusCode.UNAUTHENTICATED:
            text = f"the coordinator at {address} {fault.short}; give its file (--token-file)"
        elif code is grpc.StatusCode.UNAVAILABLE and fault.short != _SAID:
            text = (
                f"no connection to the coordinator at {address}: {fault.short}; say how it is "
                "reached: --tls-ca, --tls-cert, --tls-key"
            )
        else:
            text = f"the coordinator at {address}: {error.details() or fault.short}"
        return NoAnswer(text, code.name, fault.short)

    def _workers(self, about: Message, index: Message) -> dict[str, WorkerView]:
        """As the property `workers` tells; of a coordinator that has none, from its index."""
        if "workers" not in about.properties:
            rows = [(m.name.rpartition("/")[2], m) for m in index.models[1:]]
            return {n: WorkerView(usable=m.state == "READY", reason=m.reason) for n, m in rows}
        try:
            return _WORKERS.validate_json(about.properties["workers"])
        except ValidationError as error:
            raise RuntimeFault(
                f"the coordinator at {self._access.address} tells of its workers in a way that "
                "this edgevit does not read; use the same version for both"
            ) from error


def _input(about: Message) -> TensorSpec:
    """The input of the whole model, whose layout its shape tells."""
    (told,) = about.inputs
    shape = list(told.shape)
    layout: Layout | None = None
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        layout = "NCHW" if shape[1] == 3 else "NHWC"
    return TensorSpec(told.name, shape, DATATYPES[told.datatype], layout)


def _answer(response: Message, elapsed_ms: float) -> ClusterAnswer:
    told: dict[str, Any] = dict(parameters_of(response.parameters))
    try:
        (logits,) = read_outputs(response).values()
        return ClusterAnswer(
            logits=logits,
            elapsed_ms=elapsed_ms,
            total_ms=told["total_us"] / 1e3,
            stages_ms={stage.removesuffix("_us"): told[stage] / 1e3 for stage in STAGES},
            missing=dict.fromkeys(json.loads(told["missing"]), "")
            | json.loads(told.get("missing_reasons", "{}")),
            blind=tuple(json.loads(told["blind_classes"])),
            straggler=str(told["straggler"]),
            together=int(told["batch_size"]),
            plan_digest=str(told["plan_digest"]),
            mode=told.get("mode"),
            input_age_ms=_milliseconds(told.get(INPUT_AGE)),
            input_spread_ms=_milliseconds(told.get("input_spread_us")),
        )
    except (Refused, KeyError, TypeError, ValueError) as error:
        raise RuntimeFault(
            f"the coordinator's answer is not one that this edgevit reads ({error}); use the same "
            "version for both"
        ) from error


def _milliseconds(us: float | None) -> float | None:
    return None if us is None else us / 1e3


# The ways in which a coordinator is simply not there; of runtime.client.errors.
_UNHEARD = frozenset(
    {
        "nothing listens there", "no such host", "no way there", "no connection",
        "it takes connections and says nothing", "the connection broke",
    }
)  # fmt: skip
_SAID = "not available now"  # by the coordinator itself: no worker can answer
_WORKERS = TypeAdapter(dict[str, WorkerView])
_INFER = methods(INFERENCE)["ModelInfer"]

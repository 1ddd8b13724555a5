"""The calls to an agent without any waiting: what to send, how to read the answer, what comes next.

A call is a generator of steps. Its driver (AgentClient, AsyncAgentClient) does each step and gives
back the answer, or throws the AgentFault in; so the blocking and the asyncio client are one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from pydantic import ValidationError

from runtime.bundle import first_problem
from runtime.client.errors import AgentFault
from runtime.client.results import (
    Device,
    Held,
    InferResult,
    ModelMetadata,
    ModelState,
    ServerMetadata,
    parameters_of,
    plain,
    read_device,
)
from runtime.client.steps import Allowance, Ask, Outgoing, Plan, Wait, Work
from runtime.errors import RuntimeFault
from runtime.run_files import parse_run
from runtime.run_record import RunRecord
from runtime.sessions.base import Array
from runtime.tensor_spec import TensorSpec
from runtime.wire.bundle_plan import BundlePlan, Sent, chunks, plan_of
from runtime.wire.descriptors import DEVICE, HEALTH, INFERENCE, Message, message, methods
from runtime.wire.input_ref import put_input_ref
from runtime.wire.tensors import DATATYPES, put_input, read_outputs

Progress = Callable[[str, float], None]
"""A message, and the fraction that is done."""

QUICK_S = 10.0
INFER_S = 30.0
LOAD_S = 180.0
LONG_S = 3600.0
"""For uploads and profiles, which take as long as they take; keepalive notices a dead device."""
CHUNK = 512 << 10
RESUMES = 3
BACK_OFF_S = 1.0
# ABORTED: the agent has not yet noticed that an upload of the same bundle was cut, or another runs.
CUT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED})
TIMINGS = ("queue_us", "decode_us", "compute_us", "encode_us", "total_us")


@dataclass(frozen=True)
class ProfileOptions:
    """As in runtime.profiler.profile."""

    threads: int = 1
    runs: int = 100
    per_op: bool = False
    min_time_s: float = 1.0
    max_time_s: float = 120.0


def live(timeout_s: float) -> Plan[bool]:
    answer = yield _ask(INFERENCE, "ServerLive", timeout_s)
    return bool(answer.live)


def ready(timeout_s: float) -> Plan[bool]:
    answer = yield _ask(INFERENCE, "ServerReady", timeout_s)
    return bool(answer.ready)


def metadata(timeout_s: float) -> Plan[ServerMetadata]:
    return plain(ServerMetadata, (yield _ask(INFERENCE, "ServerMetadata", timeout_s)))


def model_ready(model: str, version: str, timeout_s: float) -> Plan[bool]:
    answer = yield _ask(INFERENCE, "ModelReady", timeout_s, name=model, version=version)
    return bool(answer.ready)


def model_metadata(model: str, version: str, timeout_s: float) -> Plan[ModelMetadata]:
    answer = yield _ask(INFERENCE, "ModelMetadata", timeout_s, name=model, version=version)
    return _model_metadata(answer)


def _model_metadata(answer: Message) -> ModelMetadata:
    return plain(
        ModelMetadata,
        answer,
        inputs=[_spec(tensor) for tensor in answer.inputs],
        outputs=[_spec(tensor) for tensor in answer.outputs],
        properties=dict(answer.properties),
    )


def index(ready_only: bool, timeout_s: float) -> Plan[list[ModelState]]:
    answer = yield _ask(INFERENCE, "RepositoryIndex", timeout_s, ready=ready_only)
    return [plain(ModelState, model) for model in answer.models]


def load(model: str, threads: int | None, instances: int | None, timeout_s: float) -> Plan[None]:
    asked = {"threads": threads, "instances": instances}
    parameters = {
        name: message("inference.ModelRepositoryParameter")(int64_param=value)
        for name, value in asked.items()
        if value is not None
    }
    yield _ask(INFERENCE, "RepositoryModelLoad", timeout_s, model_name=model, parameters=parameters)


def unload(model: str, timeout_s: float) -> Plan[None]:
    yield _ask(INFERENCE, "RepositoryModelUnload", timeout_s, model_name=model)


def health(service: str, timeout_s: float) -> Plan[str]:
    answer = yield _ask(HEALTH, "Check", timeout_s, service=service)
    names = answer.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number
    return str(names[answer.status].name)


def infer(
    model: str,
    x: Array | Mapping[str, Array] | None,
    version: str,
    timeout_s: float,
    input_names: dict[tuple[str, str], str],
    input_ref: str | None = None,
) -> Plan[InferResult]:
    """`input_names` remembers what the only input of a model is called, for bare arrays.

    Raises RuntimeFault where there is neither x nor input_ref, or both.
    """
    allowance = Allowance(timeout_s)
    if (x is None) == (input_ref is None):
        raise RuntimeFault("expected either an input or input_ref, the name of one at the device")
    if x is None:
        inputs: Mapping[str, Array] = {}
    elif isinstance(x, Mapping):
        inputs = x
    else:
        if (model, version) not in input_names:
            asked = _ask(INFERENCE, "ModelMetadata", timeout_s, name=model, version=version)
            specs = _model_metadata((yield asked)).inputs
            if len(specs) != 1:
                raise RuntimeFault(
                    f"{model} has {len(specs)} inputs; give a dictionary with "
                    + ", ".join(repr(spec.name) for spec in specs)
                )
            input_names[model, version] = specs[0].name
        inputs = {input_names[model, version]: x}
    method = methods(INFERENCE)["ModelInfer"]
    request = method.request(model_name=model, model_version=version)
    for name, array in inputs.items():
        put_input(request, name, np.asarray(array))
    if input_ref is not None:
        put_input_ref(request, input_ref)
    try:
        answer = yield Ask(method, request, allowance.left, given_s=timeout_s)
    except AgentFault:
        input_names.pop((model, version), None)  # another model may have taken its place
        raise
    parameters = parameters_of(answer.parameters)
    return InferResult(
        outputs=read_outputs(answer),
        timings={name: int(parameters.pop(name)) for name in TIMINGS if name in parameters},
        model=answer.model_name,
        version=answer.model_version,
        parameters=parameters,
    )


def describe(timeout_s: float) -> Plan[Device]:
    answer = yield _ask(DEVICE, "Describe", timeout_s)
    try:
        return read_device(answer)
    except ValidationError as error:
        raise RuntimeFault(
            f"the agent runs edgevit {answer.edgevit_version}, whose description of its device "
            f"this edgevit does not read ({first_problem(error)}); use the same version on both"
        ) from error


def upload_status(digest: str, timeout_s: float) -> Plan[Held]:
    return _held((yield _ask(DEVICE, "UploadStatus", timeout_s, digest=digest)))


def _held(answer: Message) -> Held:
    return plain(Held, answer, held={part.path: part.bytes for part in answer.held})


def upload(path: Path, name: str | None, progress: Sent | None, timeout_s: float) -> Plan[str]:
    """Send what the agent does not have of the bundle; go on where a cut connection ended it.

    After RESUMES cuts in a row that brought nothing more over, the last one is raised; after
    timeout_s, which is for all of it, DEADLINE_EXCEEDED.
    """
    allowance = Allowance(timeout_s)
    plan: BundlePlan = yield Work(lambda: plan_of(path))
    failures, best = 0, -1
    while True:
        try:
            status = _held((yield _ask_status(plan.digest, allowance)))
            if status.complete and (not name or name in status.names):
                if progress is not None:
                    progress(plan.size, plan.size)
                return plan.digest
            whole = {file.path: file.size for file in plan.files}
            held = whole if status.complete else status.held  # whole: only the name is new
            there = sum(held.values())
            failures, best = (0, there) if there > best else (failures, best)
            parts = chunks(plan, path, held, CHUNK, name or "", progress)
            answer = yield Ask(
                methods(DEVICE)["UploadBundle"], Outgoing(parts), allowance.left, given_s=timeout_s
            )
            return str(answer.digest)
        except AgentFault as fault:
            if fault.code not in CUT or failures == RESUMES or best < 0:  # never reached: no cut
                raise
            failures += 1
        yield Wait(min(BACK_OFF_S * 2 ** (failures - 1), allowance.left))


def _ask_status(digest: str, allowance: Allowance) -> Ask:
    """UploadStatus within an upload: quick, and no longer than what the upload has left."""
    left = allowance.left
    asked = _ask(DEVICE, "UploadStatus", min(QUICK_S, left), digest=digest)
    return asked if left > QUICK_S else replace(asked, given_s=allowance.seconds)


def profile(
    bundle: str,
    targets: Sequence[str],
    options: ProfileOptions,
    progress: Progress | None,
    timeout_s: float,
) -> Plan[RunRecord]:
    def tell(part: Message) -> None:
        if progress is not None and part.HasField("progress"):
            progress(part.progress.message, part.progress.fraction)

    method = methods(DEVICE)["Profile"]
    request = method.request(bundle=bundle, targets=targets, **asdict(options))
    last = yield Ask(method, request, timeout_s, tell)
    if last is None or not last.HasField("run_json"):
        raise RuntimeFault("the agent ended the profile without a result; its log says why")
    return parse_run(last.run_json, "the agent's answer")


def remove(bundle: str, timeout_s: float) -> Plan[int]:
    answer = yield _ask(DEVICE, "Remove", timeout_s, bundle=bundle)
    return int(answer.freed)


def _ask(service: str, name: str, timeout_s: float, /, **fields: Any) -> Ask:
    method = methods(service)[name]
    return Ask(method, method.request(**fields), timeout_s)


def _spec(tensor: Message) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        shape=list(tensor.shape),
        dtype=DATATYPES.get(tensor.datatype, tensor.datatype.lower()),
    )

"""Bring a plan's bundles to an agent and have them served: nothing that is there travels again.

A bundle is told by its digest. One that the store holds under a name of its owner's is used, and so
is a model of the right bytes and target that its owner loaded; neither is changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from partition.plan import Plan
from runtime.client import Access, AgentClient
from runtime.client.results import Device, Model
from runtime.errors import RuntimeFault
from runtime.serving.model import LOADING, READY
from runtime.serving.storage.names import default_name

READY_S = 120.0  # for an agent that still loads what it had before
POLL_S = 0.2


@dataclass(frozen=True)
class Wanted:
    """A sub-model that a device is to serve: its bundle, the bundle's digest, and how.

    `name` is what we call the bundle in the store.
    """

    submodel: str
    path: Path
    digest: str
    target: str
    threads: int
    name: str

    @property
    def model(self) -> str:
        """What we call the model."""
        return f"{self.name}/{self.target}"


@dataclass
class Deployed:
    """What became of it. `present` and `pushed` are names in the store, `loaded` those of models.

    What is present was there whole, but perhaps under another name; nothing of it travelled.
    `models` says what serves each sub-model, `failed` why one is not served, by sub-model.
    """

    present: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of the way: `name` is in the store or a model's; bytes that are there, and of all."""

    submodel: str
    kind: Literal["pushing", "pushed", "loading", "loaded"]
    name: str
    there: int = 0
    size: int = 0


Tell = Callable[[Step], None]
"""Told of steps as they happen; of `pushing` from another thread."""


def wanted_on(plan: Plan, device: str, threads: int) -> list[Wanted]:
    """What the plan asks of a device: its own sub-models, then the replicas that it holds."""
    (target,) = {d.target for d in plan.record.devices if d.name == device}
    own = [s for s in plan.record.submodels if s.primary == device]
    replicas = [s for s in plan.record.submodels if device in s.replicas]
    return [
        Wanted(
            s.name, plan.bundle(s), s.bundle_digest, target, threads,
            default_name(f"edvit-{plan.digest[:8]}-{s.name}"),
        )
        for s in [*own, *replicas]
    ]  # fmt: skip


def deploy(access: Access, wanted: Sequence[Wanted], tell: Tell) -> Deployed:
    """Have every one served; a second time nothing travels and nothing is loaded.

    What fails with one sub-model does not hold up the others, unless the agent is gone. Raises
    RuntimeFault where it does not answer at all; then nothing was changed.
    """
    done = Deployed()
    with AgentClient(access) as agent:
        device = _ready(agent)
        for number, each in enumerate(wanted):
            try:
                done.models[each.submodel] = _serve(agent, device, each, tell, done)
            except RuntimeFault as fault:
                if _lives(agent):
                    done.failed[each.submodel] = str(fault)
                    continue
                done.failed.update({one.submodel: str(fault) for one in wanted[number:]})
                break
    return done


def _ready(agent: AgentClient) -> Device:
    """The device, once its agent takes requests: until then it may load what it had before."""
    end = time.monotonic() + READY_S
    while not agent.ready():
        if time.monotonic() > end:
            raise RuntimeFault(
                f"the agent at {agent.access.address} still starts or ends after {READY_S:g} s; "
                "its log says why"
            )
        time.sleep(POLL_S)
    return agent.describe()


def _serve(agent: AgentClient, device: Device, wanted: Wanted, tell: Tell, done: Deployed) -> str:
    """The name of the model that serves it, loaded if need be. Raises RuntimeFault."""
    found = [model for model in device.models if _serves(model, wanted)]
    ours = [model for model in found if model.name == wanted.model]
    if not ours or ours[0].threads == wanted.threads:
        # Its owner's own is not changed: it has the threads that its owner wants.
        there = ours or sorted(found, key=lambda model: (model.state != READY, model.name))
        if there:
            done.present.append(there[0].name.partition("/")[0])
            if there[0].state == LOADING:
                agent.load(there[0].name)  # returns when it is there
            return there[0].name
    _check_engine(agent, device, wanted.target)
    _bring(agent, wanted, tell, done)
    tell(Step(wanted.submodel, "loading", wanted.model))
    agent.load(wanted.model, threads=wanted.threads)
    done.loaded.append(wanted.model)
    tell(Step(wanted.submodel, "loaded", wanted.model))
    return wanted.model


def _serves(model: Model, wanted: Wanted) -> bool:
    """Whether it is these bytes and this target, and answers or soon will."""
    same = (model.digest, model.target) == (wanted.digest, wanted.target)
    return same and model.state in (READY, LOADING)


def _check_engine(agent: AgentClient, device: Device, target: str) -> None:
    """Raise RuntimeFault where the device cannot run the target, before a bundle travels there."""
    engines = [engine for engine in device.engines if engine.target == target]
    if any(engine.available for engine in engines):
        return
    why = "; ".join(engine.reason for engine in engines) or "this edgevit has none for it"
    raise RuntimeFault(f"{agent.access.address} has no engine for {target}: {why}")


def _bring(agent: AgentClient, wanted: Wanted, tell: Tell, done: Deployed) -> None:
    """Have the bundle in the store under our name; its bytes travel where they are not there whole.

    One that its owner has there under another name gets ours beside it, so that what we load is
    ours to unload, whatever becomes of that name. Raises RuntimeFault.
    """
    held = agent.upload_status(wanted.digest)
    if not held.complete or wanted.name not in held.names:

        def sent(there: int, size: int) -> None:
            tell(Step(wanted.submodel, "pushing", wanted.name, there, size))

        if agent.upload(wanted.path, wanted.name, sent) != wanted.digest:
            raise RuntimeFault(
                f"{wanted.path} is not what the plan was made with; copy the plan anew or "
                "partition again"
            )
    if held.complete:
        done.present.append(wanted.name)
    else:
        done.pushed.append(wanted.name)
        tell(Step(wanted.submodel, "pushed", wanted.name))


def _lives(agent: AgentClient) -> bool:
    """Whether the agent answers still."""
    try:
        return agent.live()
    except RuntimeFault:
        return False

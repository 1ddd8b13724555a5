"""Which bundle and artefact a model's name means, and what could be served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import grpc

from runtime.bundle import Bundle
from runtime.errors import RuntimeFault
from runtime.predict import ORDER
from runtime.serving.model import UNAVAILABLE, ServedModel
from runtime.sessions.base import engine_for
from runtime.sessions.installed import find_engine
from runtime.wire.refused import Refused, not_found, precondition


class Found(Protocol):
    """A bundle of the store."""

    @property
    def digest(self) -> str: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def bundle(self) -> Bundle: ...


class Bundles(Protocol):
    """What is asked of the store."""

    def bundles(self) -> Sequence[Found]: ...
    def damaged(self) -> Mapping[str, tuple[list[str], str]]: ...
    def find(self, name_or_digest: str) -> Found: ...
    def suspect(self, digest: str) -> None: ...
    def remembered(self) -> Mapping[str, Mapping[str, int]]: ...
    def remember(self, model: str, settings: Mapping[str, int]) -> None: ...
    def forget(self, model: str) -> None: ...


@dataclass(frozen=True)
class ModelEntry:
    """A line of the index. target, precision and threads are empty where nothing is loaded."""

    name: str
    version: str
    state: str
    reason: str
    target: str
    precision: str
    digest: str
    threads: int
    queued: int


def pick(store: Bundles, name: str) -> tuple[Found, str]:
    """The bundle of a model's name, and the target that runs here. Raises Refused."""
    found = find_bundle(store, name)
    base, slash, target = name.partition("/")
    if not slash:
        return found, best_target(found.bundle, base)
    missing = find_engine(engine_for(found.bundle.artifact_path(target))).missing
    if missing is not None:
        raise precondition(f"'{name}' cannot run here: {missing}")
    return found, target


def find_bundle(store: Bundles, name: str) -> Found:
    """The bundle that NAME or NAME/TARGET lies in. Raises Refused, NOT_FOUND or DATA_LOSS."""
    base, slash, target = name.partition("/")
    try:
        found = store.find(base)
    except Refused as error:
        if error.code != grpc.StatusCode.NOT_FOUND:
            raise
        raise _unknown(store, name) from None
    if base not in found.names:  # a digest is no name
        raise _unknown(store, name)
    if slash:
        try:
            found.bundle.artifact_path(target)
        except RuntimeFault as fault:
            raise not_found(str(fault).replace(str(found.bundle.path), f"'{base}'")) from None
    return found


def best_target(bundle: Bundle, name: str) -> str:
    """The first target that passed its verification and whose engine is here. Raises Refused."""
    reasons = []
    for target in (t for t in ORDER if t in bundle.manifest.artifacts):
        check = bundle.artifact(target).verification
        try:
            missing = find_engine(engine_for(Path(bundle.artifact(target).file))).missing
        except RuntimeFault as fault:
            missing = str(fault)
        if check.status == "failed":
            reasons.append(f"{target}: its verification failed: {check.reason}")
        elif missing is not None:
            reasons.append(f"{target}: {missing}")
        else:
            return target
    raise precondition(f"no target of '{name}' runs here: {'; '.join(reasons) or 'it has none'}")


def index(
    store: Bundles, models: Mapping[str, ServedModel], failed: Mapping[str, str]
) -> list[ModelEntry]:
    """Every bundle under each of its names, and every one of `models`, in the order of names.

    failed maps a name to why it was not loaded.
    """
    entries = {}
    for digest, (names, why) in store.damaged().items():
        for name in names:
            entries[name] = _not_loaded(name, digest, f"the bundle is damaged: {why}")
    for found in store.bundles():
        for name in found.names:
            entries[name] = _not_loaded(name, found.digest, failed.get(name, "it is not loaded"))
    for name, model in models.items():
        entries[name] = _entry(model)
    return [entries[name] for name in sorted(entries)]


def _unknown(store: Bundles, name: str) -> Refused:
    known = sorted(each for found in store.bundles() for each in found.names)
    near = get_close_matches(name, known, n=1)
    return not_found(
        f"no model {name[:140]!a} here; there are: {', '.join(known[:8]) or 'none'}"
        + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        + (f". Did you mean '{near[0]}'?" if near else "")
    )


def _entry(model: ServedModel) -> ModelEntry:
    return ModelEntry(
        model.name, model.version, model.state, model.reason, model.target, model.precision,
        model.digest, model.settings.threads, model.queued,
    )  # fmt: skip


def _not_loaded(name: str, digest: str, why: str) -> ModelEntry:
    return ModelEntry(name, digest[:12], UNAVAILABLE, why, "", "", digest, 0, 0)

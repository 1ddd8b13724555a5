"""The models of an agent: which are loaded, and what can be."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import replace

import grpc

from runtime.bundle import Bundle, check_bytes
from runtime.errors import RuntimeFault
from runtime.serving.choosing import Bundles, Found, find_bundle, index, pick
from runtime.serving.choosing import ModelEntry as ModelEntry  # noqa: PLC0414 -- of the index
from runtime.serving.model import LOADING, READY, ModelSettings, ServedModel
from runtime.serving.observer import NOBODY, Observer
from runtime.serving.storage.files import told
from runtime.wire.refused import Refused, not_found, precondition, unavailable

log = logging.getLogger(__name__)

Subscriber = Callable[[str, bool], None]
"""Told the name of a model, and whether it is ready, whenever that may have changed."""


class Models:
    """NAME is the best target of a bundle, NAME/TARGET one of its own choice. Of one event loop."""

    def __init__(
        self, store: Bundles, defaults: ModelSettings | None = None, observe: Observer = NOBODY
    ) -> None:
        """Nothing is loaded yet; restore() loads what was loaded before."""
        self._store, self._observe = store, observe
        self._defaults = defaults or ModelSettings()
        self._models: dict[str, ServedModel] = {}
        self._loading: dict[str, ServedModel] = {}
        self._failed: dict[str, tuple[Bundle, str]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._subscribers: list[Subscriber] = []
        self._retired: dict[asyncio.Task[None], ServedModel] = {}
        self._closed = False

    async def load(
        self, name: str, *, threads: int | None = None, instances: int | None = None
    ) -> ServedModel:
        """Load a model, or another version or other settings in its place.

        The one that is there answers until the new one is ready. Loading again what runs already
        does nothing. Raises Refused: NOT_FOUND, DATA_LOSS where bytes have changed,
        FAILED_PRECONDITION where no engine here runs it, and what starting an engine raises.
        """
        find_bundle(self._store, name)  # before there is a lock by a name that nobody has
        async with self._locks[name]:
            if self._closed:
                raise unavailable("the agent is ending")
            current = self._models.get(name)
            wanted = find_bundle(self._store, name).bundle
            try:
                found, target = pick(self._store, name)
                if current and _same(current, found.digest, target, threads, instances):
                    return current
                settings = replace(
                    self._defaults,
                    threads=threads or self._defaults.threads,
                    instances=instances or self._defaults.instances,
                )
                model = await self._start(name, found, target, settings)
            except RuntimeFault as error:
                self._failed[name] = wanted, str(error)
                if current is None:
                    self._tell(name, False)
                raise
            self._failed.pop(name, None)
            if current is not None:
                self._retire(current)
            await self._remember(model)
            return model

    async def unload(self, name: str) -> None:
        """Answer what waits, then end the engines; forget that it was loaded.

        Nothing happens where the model is not loaded. Raises Refused, NOT_FOUND.
        """
        if name not in self._models:
            find_bundle(self._store, name)
        async with self._locks[name]:
            model = self._models.get(name)
            try:
                await asyncio.to_thread(self._store.forget, name)
            except RuntimeFault as fault:  # it is loaded again when the agent starts again
                log.warning("model %s is unloaded but still remembered: %s", name, fault)
            self._failed.pop(name, None)
            if model is not None:
                await asyncio.shield(self._retire(model))

    def find(self, name: str, version: str = "") -> ServedModel:
        """A loaded model. Raises Refused: NOT_FOUND, FAILED_PRECONDITION where it is not loaded."""
        model = self._models.get(name)
        if model is None:
            raise self._absent(name)
        if version and version != model.version:
            raise not_found(f"model '{name}' has version {model.version}, not {version[:80]!a}")
        return model

    def index(self) -> list[ModelEntry]:
        """Every bundle of the store under each of its names, and everything loaded."""
        return index(self._store, {**self._loading, **self._models}, self._failures())

    def loaded(self) -> list[ServedModel]:
        """The models that are loaded, in whatever state."""
        return list(self._models.values())

    def in_use(self, digest: str) -> list[str]:
        """Names of the models that run on a bundle, are about to, or are being ended."""
        models = [*self._models.values(), *self._loading.values(), *self._retired.values()]
        return sorted({model.name for model in models if model.digest == digest})

    def subscribe(self, callback: Subscriber) -> None:
        """Call back at every change of a model's state, on the event loop."""
        self._subscribers.append(callback)

    async def restore(self, but: Collection[str] = ()) -> dict[str, str]:
        """Load what was loaded when the agent last ended, but for some; what failed, and why."""
        failed = {}
        for name, settings in self._store.remembered().items():
            if name in but:
                continue
            try:
                await self.load(name, **settings)
            except RuntimeFault as error:
                failed[name] = str(error)
                log.warning("model %s was not loaded again: %s", name, error)
        return failed

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, give the ones that are here grace_s seconds, end all engines."""
        self._closed = True
        models = [*self._models.values(), *self._loading.values()]
        draining = [asyncio.ensure_future(model.drain()) for model in models]
        if draining:
            _, late = await asyncio.wait(draining, timeout=grace_s)
            for task in late:
                task.cancel()
        await asyncio.gather(*(model.close() for model in models))
        retired = dict(self._retired)
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        await asyncio.gather(*(model.close() for model in retired.values()))  # the cancel cut it

    async def _start(
        self, name: str, found: Found, target: str, settings: ModelSettings
    ) -> ServedModel:
        """A model that is loaded and in the table. Raises Refused; then nothing is left of it."""
        try:
            model = ServedModel(
                name, found.bundle, found.digest, target, settings, self._observe, self._changed
            )
        except RuntimeFault as fault:
            raise precondition(str(fault)) from None
        self._loading[name] = model
        try:
            if name not in self._models:
                self._tell(name, False)
            try:
                await asyncio.to_thread(check_bytes, found.bundle, [target])
            except (RuntimeFault, OSError) as fault:
                self._store.suspect(found.digest)
                why = told(fault, found.bundle.path, f"the bundle '{name}'")
                raise Refused(
                    grpc.StatusCode.DATA_LOSS, f"{why}; upload the bundle again"
                ) from None
            if self._closed:
                raise unavailable("the agent is ending")
            await model.start()
            self._models[name] = model
            self._tell(name, model.state == READY)
        finally:
            del self._loading[name]
        return model

    def _retire(self, model: ServedModel) -> asyncio.Task[None]:
        """Let a model that is replaced or unloaded finish what it has, then end it."""

        async def end() -> None:
            try:
                await asyncio.wait_for(model.drain(), model.settings.run_timeout_s)
            except TimeoutError:
                log.warning("model %s %s was ended with requests left", model.name, model.version)
            finally:
                await model.close()
                if self._models.get(model.name) is model:
                    del self._models[model.name]
                    self._tell(model.name, False)

        task = asyncio.get_running_loop().create_task(end())
        self._retired[task] = model
        task.add_done_callback(self._retired.pop)
        return task

    async def _remember(self, model: ServedModel) -> None:
        settings = {"threads": model.settings.threads, "instances": model.settings.instances}
        try:
            await asyncio.to_thread(self._store.remember, model.name, settings)
        except RuntimeFault as fault:  # it is served, but not after a restart of the agent
            log.warning("model %s is loaded but not remembered: %s", model.name, fault)

    def _changed(self, model: ServedModel) -> None:
        if self._models.get(model.name) is model:  # not one that is replaced or loads still
            self._tell(model.name, model.state == READY)

    def _tell(self, name: str, ready: bool) -> None:
        for callback in self._subscribers:
            callback(name, ready)

    def _absent(self, name: str) -> Refused:
        """The error for a model that is not loaded."""
        if name in self._loading:
            return unavailable(f"the model '{name}' is being loaded; try again")
        try:
            find_bundle(self._store, name)
        except Refused as error:
            return error
        failures = self._failures()
        why = f" (the last time: {failures[name]})" if name in failures else ""
        return precondition(f"the model '{name}' is not loaded: load it first{why}")

    def _failures(self) -> dict[str, str]:
        """Why each name was not loaded, of the bundles that are still there under it."""
        there = {name: found.bundle for found in self._store.bundles() for name in found.names}
        self._failed = {
            name: (bundle, why)
            for name, (bundle, why) in self._failed.items()
            if there.get(name.partition("/")[0]) is bundle
        }
        return {name: why for name, (_, why) in self._failed.items()}


def _same(
    model: ServedModel, digest: str, target: str, threads: int | None, instances: int | None
) -> bool:
    """Whether a loaded model is what is asked for."""
    settings = model.settings
    return (
        model.state in (READY, LOADING)
        and (model.digest, model.target) == (digest, target)
        and threads in (None, settings.threads)
        and instances in (None, settings.instances)
    )

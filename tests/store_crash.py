"""Kill the store's process at every step it takes on the disk, and open the store again.

    python tests/store_crash.py HOME        prints one JSON object

A process of its own: it forks for every step, which a process with the threads of torch must not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from store_tools import parts, send, tree, write_bundle  # noqa: E402

from runtime.digest import sha256_tree  # noqa: E402
from runtime.serving.storage.store import Store  # noqa: E402
from runtime.wire.bundle_plan import plan_of  # noqa: E402

STEPS = ("rename", "replace", "fsync", "pwrite", "mkdir", "open", "unlink", "rmdir", "ftruncate")


class Bomb:
    """Kills this process with SIGKILL before step number `at`, of those that os takes."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.step = ""

    def arm(self) -> None:
        for name in STEPS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **more: Any) -> Any:
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return real(*words, **more)

        return step


def upload(store: Store, home: Path) -> None:
    """A new bundle, cut and resumed, under a name that an old one has."""
    plan = plan_of(home / "new")
    first = store.begin(plan.header("name"))
    if not first.complete:
        for part in list(parts(plan, home / "new", dict(first.held)))[:2]:
            first.write(*part)
    first.suspend()
    second = store.begin(plan.header("name"))
    if second.complete:
        second.finish()
    else:
        send(second, plan, home / "new")


def remove(store: Store, home: Path) -> None:
    """The bundle goes, its names and models with it."""
    store.remove("name")


def remember(store: Store, home: Path) -> None:
    """Another model is remembered, one is not any more."""
    store.remember("name/tflite", {"threads": 4, "instances": 2})
    store.forget("name")


def state(store: Store) -> dict[str, Any]:
    """All that a client can see of a store. Every bundle in it is whole."""
    for stored in store.bundles():
        assert sha256_tree(stored.path) == stored.digest
    assert not store.damaged()
    names = {name: stored.digest for stored in store.bundles() for name in stored.names}
    return {"names": names, "models": store.remembered(), "id": store.device_id}


def crash(action: Callable[[Store, Path], None], home: Path, at: int) -> bool:
    """Run the action in a process of its own that dies before step `at`; False where it lived."""
    pid = os.fork()
    if pid == 0:
        try:
            bomb = Bomb(at)
            bomb.arm()
            action(Store.open(home / "store"), home)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def every_step(action: Callable[[Store, Path], None], home: Path) -> dict[str, int]:
    """Kill the action at each of its steps; how often the old and the new state came of it."""
    store = Store.open(home / "before")
    store.add(home / "old", "name")
    store.remember("name", {"threads": 1, "instances": 1})
    old = state(store)
    store.close()
    shutil.copytree(home / "before", home / "store")
    store = Store.open(home / "store")
    action(store, home)
    new = state(store)
    assert new != old
    store.close()
    found = {"steps": 0, "old": 0, "new": 0, "between": 0}
    died, at = True, 0
    while died:
        shutil.rmtree(home / "store")
        shutil.copytree(home / "before", home / "store")
        died = crash(action, home, at)
        store = Store.open(home / "store")
        seen = state(store)
        kind = "old" if seen == old else "new" if seen == new else "between"
        if kind == "between":
            assert action is remember, (at, seen, old, new)  # two changes, one after the other
        found[kind] += 1
        left = [p.name for p in (home / "store" / "trash").iterdir()]
        assert not left, left
        if kind == "old":  # and the same again works to its end
            action(store, home)
            assert state(store) == new, at
        if action is upload:
            assert tree(store.find("name").path) == tree(home / "new")
            assert list((home / "store" / "incoming").iterdir()) == []
        store.close()
        at += 1
    found["steps"] = at - 1
    shutil.rmtree(home / "before")
    shutil.rmtree(home / "store")
    return found


def main() -> None:
    home = Path(sys.argv[1])
    more = {"deep/er/notes.txt": b"x" * 100, "empty": b""}
    write_bundle(home / "old", size=500)
    write_bundle(home / "new", seed=1, size=9000, more=more)
    sys.stdout.write(
        json.dumps(
            {action.__name__: every_step(action, home) for action in (upload, remove, remember)}
        )
    )


if __name__ == "__main__":
    main()

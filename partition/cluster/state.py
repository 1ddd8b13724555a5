"""PLAN.cluster/, beside PLAN: what a launch has started and loaded, so that the next one knows.

    PLAN.cluster/  state.json   coordinator.log   coordinator.json
                   stores/NAME/   inputs/NAME/   logs/NAME.log   logs/NAME.json

A .json beside a log is what the process said of itself when it was ready. The folder holds what
processes are told apart by, so it is its owner's alone, and locked while a launch or a stop works.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from partition.errors import PartitionError
from runtime.bundle import check_version, first_problem
from runtime.devices.file import TlsFiles
from runtime.errors import RuntimeFault
from runtime.manifest import Record

SCHEMA_VERSION = 1
STATE_NAME = "state.json"
SUFFIX = ".cluster"

Kind = Literal["local", "ssh", "given"]


class ProcessState(Record):
    """A process that a launch started. `created` is psutil's create_time, seconds since 1970.

    Both together tell it from every other one, for a system gives a number again. `log` is relative
    to PLAN.cluster.
    """

    pid: int = Field(ge=2)
    created: float
    log: str


class DeviceState(Record):
    """The agent of one device, and what was brought to it.

    local: its process is ours. ssh: `remote` is what ends it there again. given: somebody else
    runs it. `address` and `device_id` are None until the agent has told them, and stay over a stop;
    `tls` and `token_file` are as in the cluster file, with whole paths.
    `started` says whether an agent runs that a launch started. `models` says as which model each of
    its sub-models is served; `pushed` and `loaded` are names of what a launch uploaded and loaded,
    for the plan of `plan_digest`. A name may be in `loaded` shortly before it is.
    """

    kind: Kind
    address: str | None = None
    device_id: str | None = None
    tls: TlsFiles | bool = False
    token_file: Path | None = None
    process: ProcessState | None = None
    remote: dict[str, Any] | None = None
    started: bool = False
    plan_digest: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    pushed: list[str] = Field(default_factory=list)
    loaded: list[str] = Field(default_factory=list)


class CoordinatorState(Record):
    """The coordinator's process and what it was started with.

    `address` and `metrics` are where it listens, None until it has told. `listen` and `options`
    are what was asked for, `devices` the addresses of the agents, `files_sha256` is over the files
    that it reads once.
    """

    address: str | None = None
    metrics: str | None = None
    process: ProcessState
    plan_digest: str
    devices: dict[str, str]
    files_sha256: str
    listen: str
    options: dict[str, str | float | bool | None]


class RunState(Record):
    """state.json. `devices` are by name; `plan_digest` is of the plan that was launched last."""

    schema_version: int = SCHEMA_VERSION
    plan_digest: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    devices: dict[str, DeviceState] = Field(default_factory=dict)
    coordinator: CoordinatorState | None = None


def folder_of(plan_path: Path) -> Path:
    """PLAN.cluster. A link is not followed: another plan behind it is the same cluster changed."""
    return Path(os.path.abspath(plan_path) + SUFFIX)  # noqa: PTH100  # Path has none without links


def state_file(plan_path: Path) -> Path:
    """Where the state stands."""
    return folder_of(plan_path) / STATE_NAME


def read_state(plan_path: Path) -> RunState | None:
    """What launches and stops left; None before the first. Raises PartitionError."""
    file = state_file(plan_path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        check_version(data, file, SCHEMA_VERSION)
        return RunState.model_validate(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise _unreadable(plan_path, first_problem(error)) from error
    except OSError as error:
        raise PartitionError(f"cannot read {file}: {error.strerror}") from error
    except (RuntimeFault, ValueError) as error:
        raise _unreadable(plan_path, str(error)) from error


def write_state(plan_path: Path, state: RunState) -> None:
    """Replace state.json: at every moment the old or the new one is there, whole.

    Raises PartitionError where the disk refuses.
    """
    file = state_file(plan_path)
    new = file.with_name(f".{file.name}.new")
    with writing(file):
        try:
            with new.open("w", encoding="utf-8") as stream:
                stream.write(state.model_dump_json(indent=1) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(file)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals inside the block into one clear error about `path`."""
    try:
        yield
    except OSError as error:
        raise PartitionError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def locked(plan_path: Path) -> Iterator[Path]:
    """PLAN.cluster, made where it is not there, for this process alone until the block ends.

    Raises PartitionError where another launch or stop has it, or it is not ours.
    """
    folder = folder_of(plan_path)
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _check_ours(folder, os.fstat(lock))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise PartitionError(
                    f"another `edgevit cluster launch` or `stop` of {plan_path} is at work; wait "
                    "for it, then try again"
                ) from error
            raise PartitionError(
                f"cannot lock {folder}: {error.strerror}; put the plan on a local disk"
            ) from error
        yield folder
    finally:
        os.close(lock)


def _check_ours(folder: Path, found: os.stat_result) -> None:
    """Who writes there decides which processes are ended; that must be us alone."""
    if found.st_uid != os.getuid():
        raise PartitionError(f"{folder} is another user's; copy the plan to a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PartitionError(
            f"others may write in {folder}, which says what a stop ends; chmod 700 it"
        )


def _unreadable(plan_path: Path, why: str) -> PartitionError:
    return PartitionError(
        f"{state_file(plan_path)} cannot be read ({' '.join(why.split())}), so what a launch "
        f"started is not known. Find it with `pgrep -af {shlex.quote(str(plan_path.absolute()))}`, "
        "end it, then remove the file"
    )

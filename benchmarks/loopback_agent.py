"""A device agent on this machine for a benchmark: started, weighed, ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from runtime.bundle import read_bundle, read_reference
from runtime.client import AgentClient
from runtime.wire.descriptors import INFERENCE, methods
from runtime.wire.tensors import put_input

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6
INFER = methods(INFERENCE)["ModelInfer"]


@dataclass(frozen=True)
class Agent:
    """Where it listens, its process, and the seconds from its start to the line that says so."""

    address: str
    pid: int
    started_s: float


@dataclass(frozen=True)
class Weight:
    """Memory of the agent and its engine processes together, in MB (10^6 bytes).

    rss counts what they share once for each, pss once.
    """

    rss: float
    pss: float
    processes: int


@contextmanager
def loopback_agent(store: Path, *flags: object, load: tuple[Path, ...] = ()) -> Iterator[Agent]:
    """`edgevit agent` until the block ends."""
    words = ["agent", "--listen", "127.0.0.1:0", "--store", store, "--log-level", "error"]
    words += [word for bundle in load for word in ("--load", bundle)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevit", *map(str, (*words, *flags))],
        cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # "listening on HOST:PORT"
        seconds = time.perf_counter() - started
        if not line:
            raise SystemExit(f"the agent did not start: exit code {process.wait(30)}")
        yield Agent(line.split()[-1], process.pid, seconds)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def weigh(agent: Agent) -> Weight:
    """Memory of the agent and its children now."""
    parent = psutil.Process(agent.pid)
    family = [parent, *parent.children(recursive=True)]
    full = [process.memory_full_info() for process in family]
    rss, pss = sum(m.rss for m in full), sum(m.pss for m in full)
    return Weight(rss / MB, pss / MB, len(family))


def request_for(agent: Agent, bundle: Path) -> Any:
    """A raw request with the first reference picture of a bundle that the agent has loaded."""
    with AgentClient(agent.address) as client:
        (model,) = client.index(ready_only=True)
        (spec,) = client.model_metadata(model.name).inputs
    x = read_reference(read_bundle(bundle))[0][:1]
    request = INFER.request(model_name=model.name)
    put_input(request, spec.name, x if spec.shape[-1] == 3 else x.transpose(0, 3, 1, 2))
    return request

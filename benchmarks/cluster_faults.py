"""What clients of a coordinator see while its workers fail, and how soon a worker is back.

    python benchmarks/cluster_faults.py [--rounds 3] [--out docs/results/cluster-faults.md]

Three agents with one tiny ONNX sub-model each, a coordinator, and a caller that sends one request
after the other, all on this machine over loopback TCP, a process each. Every answer is compared with
torch: the whole model, or the model with blocks of zeros for the sub-models that the answer names as
missing. "out after" is from the fault to the first answer without the sub-model, "back after" from
its end (the process takes calls, goes on, or the network passes again) to the first answer with it;
the slowest of all rounds. "slowest answer" is of all answers in that time. The black hole is a proxy
that holds everything back: what a real one adds by TCP's own waiting is not in these numbers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from loopback_agent import ROOT
from result_page import publish

sys.path.append(str(ROOT / "tests"))
from agent_tools import Agent, channel_to, running_agent
from coordinator_tools import (
    DEVICES,
    TinyPlan,
    agents_of,
    coordinating,
    is_right,
    pictures,
    predict,
    write_plan,
)
from shaping_proxy import BLACKHOLE, PASS, RESET, Proxy, proxied

BACK_S = 2.0
REQUEST_S, PATIENCE_S, DOWN_S = 5.0, 30.0, 2.0


@dataclass
class Load:
    """Requests one after the other; for each answer its time, its duration, and what is missing."""

    plan: TinyPlan
    channel: Any
    answers: list[tuple[float, float, tuple[int, ...]]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    over: bool = False

    def run(self) -> None:
        seed = 0
        while not self.over:
            seed += 1
            x = pictures(1, seed % 7)
            begun = time.monotonic()
            try:
                answer = predict(self.channel, x, timeout=REQUEST_S)
            except grpc.RpcError as error:
                self.refused[error.code().name] += 1
                time.sleep(0.02)
                continue
            now = time.monotonic()
            self.wrong += not is_right(self.plan, x, answer)
            self.answers.append((now, now - begun, tuple(answer.missing)))

    def until(self, missing: tuple[int, ...], since: float) -> float:
        """Seconds from `since` to the first answer that lacks just these."""
        while True:
            for at, _, lacks in list(self.answers):
                if at > since and lacks == missing:
                    return at - since
            if time.monotonic() > since + PATIENCE_S:
                raise SystemExit(f"no answer without {missing} in {PATIENCE_S} s")
            time.sleep(0.005)


@dataclass
class Scene:
    """What a fault may act on."""

    plan: TinyPlan
    other: TinyPlan
    home: Path
    agents: list[Agent]
    proxies: list[Proxy]


Fault = Callable[[Scene], AbstractContextManager[None]]
"""The block is while the fault lasts; leaving it takes until the worker could be used again."""


def restarted(*lost: int) -> Fault:
    """SIGKILL; at the end started again with its store."""

    @contextmanager
    def fault(scene: Scene) -> Iterator[None]:
        for i in lost:
            scene.agents[i].kill()
        yield
        for i in lost:
            again = running_agent(scene.home / f"store-{i}", listen=scene.agents[i].address)
            scene.agents[i] = STACK.enter_context(again)

    return fault


@contextmanager
def hung(scene: Scene) -> Iterator[None]:
    """SIGSTOP, SIGCONT."""
    process = psutil.Process(scene.agents[1].pid)
    process.suspend()
    yield
    process.resume()


def network(mode: str) -> Fault:
    """A proxy that swallows or cuts everything."""

    @contextmanager
    def fault(scene: Scene) -> Iterator[None]:
        scene.proxies[1].set(mode)
        yield
        scene.proxies[1].set(PASS)

    return fault


@contextmanager
def wrong_plan(scene: Scene) -> Iterator[None]:
    """Started again with the sub-model of another plan under the same name."""
    agent = scene.agents[1]
    agent.kill()
    with running_agent(
        scene.home / "store-other", load=[scene.other.bundle(1)], listen=agent.address
    ):
        yield
    again = running_agent(scene.home / "store-1", listen=agent.address)
    scene.agents[1] = STACK.enter_context(again)


FAULTS: dict[str, tuple[Fault, tuple[int, ...]]] = {
    "SIGKILL, started again": (restarted(1), (1,)),
    "SIGSTOP, SIGCONT": (hung, (1,)),
    "black hole": (network(BLACKHOLE), (1,)),
    "connections reset": (network(RESET), (1,)),
    "started with another plan's sub-model, then with its own": (wrong_plan, (1,)),
    "two at once: SIGKILL (all but one)": (restarted(0, 1), (0, 1)),
}
STACK = ExitStack()


def main() -> int:
    options = _options()
    lines = [
        "| fault | answers | wrong | refused | degraded | out after s | **back after s** | limit | | "
        "slowest answer s |",
        "|" + "---|" * 10,
    ]
    passed = True
    with tempfile.TemporaryDirectory() as folder, STACK:
        home = Path(folder)
        plan, other = write_plan(home / "plan"), write_plan(home / "other", seed=1)
        agents = STACK.enter_context(agents_of(plan, home))
        proxies = [STACK.enter_context(proxied(agent.address)) for agent in agents]
        addresses = {n: p.address for n, p in zip(DEVICES, proxies, strict=False)}
        coordinator = STACK.enter_context(coordinating(plan, addresses, "--log-level", "error"))
        channel = STACK.enter_context(channel_to(coordinator.address))
        scene = Scene(plan, other, home, agents, proxies)
        for name, (fault, lost) in FAULTS.items():
            load = Load(plan, channel)
            thread = threading.Thread(target=load.run, daemon=True)
            thread.start()
            out, back = [], []
            for _ in range(options.rounds):
                load.until((), time.monotonic())
                time.sleep(DOWN_S / 2)
                begun = time.monotonic()
                with fault(scene):
                    out.append(load.until(lost, begun))
                    time.sleep(DOWN_S)
                back.append(load.until((), time.monotonic()))
            load.over = True
            thread.join(REQUEST_S + 1)
            met = max(back) <= BACK_S and not load.wrong and not load.refused
            passed &= met
            degraded = sum(bool(lacks) for _, _, lacks in load.answers)
            slowest = max(spent for _, spent, _ in load.answers)
            lines.append(
                f"| {name} | {len(load.answers)} | {load.wrong} | {dict(load.refused) or 0} | "
                f"{degraded} | {max(out):.2f} | **{max(back):.2f}** | {BACK_S} | "
                f"{'met' if met else '**missed**'} | {slowest:.2f} |"
            )
            print(lines[-1], flush=True)
    publish(
        options.out,
        "A cluster whose workers fail",
        "python benchmarks/cluster_faults.py",
        (__doc__ or "").split("\n\n")[2],
        lines,
    )
    return int(not passed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="docs/results/cluster-faults.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

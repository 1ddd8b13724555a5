"""What the device agent costs: time over a bare gRPC server, memory, start, and its profiles.

    python benchmarks/agent.py [--seconds 60] [--calls 2000] [--pairs 5] [--quick]
                               [--bundle SHVIT_S1_BUNDLE] [--out docs/results/agent.md]

Everything runs on this machine, over loopback TCP, one thread an engine. Overhead: one caller,
blocks of calls to the agent and to a bare grpc.aio server (benchmarks/agent_echo.py: parses the same
request, answers with as many bytes) taking turns; the time of a call less the engine's own
(compute_us of its answer), less the time of the bare call, medians; the agent's part of it is
total_us less compute_us. "Inline" is the bare server with the engine run in its handler, less its
compute: what any Python server pays around this engine. Load: 32 calls in flight.
Profiles: local and through the agent, taking turns. Memory: 1 MB is 10^6 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import grpc
import numpy as np
from agent_overhead import overheads
from loopback_agent import INFER, ROOT, Agent, loopback_agent, request_for, weigh
from result_page import publish

from runtime.client import AgentClient
from runtime.profile_items import items_from
from runtime.profiler import profile
from runtime.wire.service import call

GROWTH_PERCENT, PROFILE_RATIO, MEMORY_MB, START_S = 5.0, 1.05, 150.0, 1.5
IN_FLIGHT, SETTLED_S, LAST_S, STARTS = 32, 10.0, 0.5, 7


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        small = _convert("small_model:net", "tflite", work / "small")
        big = options.bundle or _convert("shvit_s1", "tflite,onnx,executorch", work / "shvit_s1")
        limits: list[bool] = []

        def judged(met: bool) -> str:
            limits.append(met)
            return "met" if met else "**missed**"

        body = ["## Overhead of one call", ""]
        body += overheads(work, {"SHViT-S1": big, "small": small}, options.calls, judged)
        body += ["", f"## {IN_FLIGHT} calls in flight, the small model", ""]
        body += _load(work, small, options.seconds, judged)
        body += ["", "## Profile of SHViT-S1: through the agent over local", ""]
        body += _profiles(work, big, options.pairs, options.runs, judged)
        body += ["", "## Memory and start", ""]
        body += _footprint(work, big, judged)
    publish(
        options.out,
        "The device agent",
        shlex.join(["python", "benchmarks/agent.py", *sys.argv[1:]]),
        (__doc__ or "").split("\n\n")[2],
        body,
    )
    return int(not all(limits))


Judge = Callable[[bool], str]


def _load(work: Path, bundle: Path, seconds: float, judged: Judge) -> list[str]:
    lines = [
        "| engine | seconds | answered | a second | p50 ms | p99 ms | errors | limit | | "
        f"PSS MB at {SETTLED_S:.0f} s | at the end | growth % | limit % | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for isolate in (True, False):
        flag = "--isolate" if isolate else "--no-isolate"
        with loopback_agent(work / f"store-load{flag}", flag, load=(bundle,)) as agent:
            spent, errors, settled, end = asyncio.run(_callers(agent, bundle, seconds))
        growth = 100 * (end / settled - 1)
        low, high = np.percentile(spent, (50, 99))
        lines.append(
            f"| {'own process' if isolate else 'thread'} | {seconds:.0f} | {len(spent)} | "
            f"{len(spent) / seconds:.0f} | {low:.2f} | {high:.2f} | "
            f"**{errors.total()}** {dict(errors) or ''} | 0 | {judged(not errors)} | "
            f"{settled:.1f} | {end:.1f} | **{growth:+.1f}** | {GROWTH_PERCENT:.0f} | "
            f"{judged(growth <= GROWTH_PERCENT)} |"
        )
        print(lines[-1], flush=True)
    return lines


async def _callers(
    agent: Agent, bundle: Path, seconds: float
) -> tuple[list[float], Counter[str], float, float]:
    """Milliseconds of every answered call, the refused ones by status, PSS after SETTLED_S and last.

    Both are weighed with all calls in flight.
    """
    data = request_for(agent, bundle).SerializeToString()
    spent: list[float] = []
    errors: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(agent.address) as channel:
        ask = channel.unary_unary(INFER.path)
        end = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < end:
                begun = time.perf_counter_ns()
                try:
                    await ask(data, timeout=60)
                except grpc.aio.AioRpcError as error:
                    errors[error.code().name] += 1
                else:
                    spent.append((time.perf_counter_ns() - begun) / 1e6)

        callers = [asyncio.create_task(caller()) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(min(SETTLED_S, seconds / 3))
        settled = weigh(agent).pss
        await asyncio.sleep(end - time.monotonic() - LAST_S)
        last = weigh(agent).pss
        await asyncio.gather(*callers)
    return spent, errors, settled, last


def _profiles(work: Path, bundle: Path, pairs: int, runs: int, judged: Judge) -> list[str]:
    """Medians over all samples of each side; the ratio has to be within 5 % both ways."""
    samples: dict[str, dict[str, list[float]]] = {"local": {}, "agent": {}}
    with (
        loopback_agent(work / "store-profile") as agent,
        AgentClient(agent.address) as client,
    ):
        digest = client.upload(bundle)
        sides = {
            "local": lambda: profile(items_from([bundle]), runs=runs),
            "agent": lambda: client.profile(digest, runs=runs),
        }
        for number in range(pairs):
            for side in sorted(sides, reverse=number % 2 == 0):  # neither is always first
                record = sides[side]()
                for missing in record.not_measured:
                    if missing.target != "coreml":  # macOS only
                        raise SystemExit(f"{side}: {missing.label}: {missing.reason}")
                for m in record.measurements:
                    values = [ms for block in m.samples_ms for ms in block]
                    samples[side].setdefault(str(m.target), []).extend(values)
    lines = [
        "| target | samples each | local ms | through the agent ms | ratio | limit | |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, values in samples["local"].items():
        local, remote = median(values), median(samples["agent"][target])
        ratio = remote / local
        met = 1 / PROFILE_RATIO <= ratio <= PROFILE_RATIO
        lines.append(
            f"| {target} | {len(values)} | {local:.3f} | {remote:.3f} | **{ratio:.3f}** | "
            f"{PROFILE_RATIO} | {judged(met)} |"
        )
        print(lines[-1], flush=True)
    return lines


def _footprint(work: Path, bundle: Path, judged: Judge) -> list[str]:
    lines = ["| what | measured | limit | |", "|---|---|---|---|"]
    for isolate in (True, False):
        flag = "--isolate" if isolate else "--no-isolate"
        with loopback_agent(work / f"store-weight{flag}", flag, load=(bundle,)) as agent:
            request = request_for(agent, bundle)
            with grpc.insecure_channel(agent.address) as channel:
                for _ in range(20):
                    call(channel, INFER)(request, timeout=60)
            weight = weigh(agent)
        where = "engine in its own process" if isolate else "engine in a thread"
        for kind, value in (("resident, summed", weight.rss), ("proportional (PSS)", weight.pss)):
            lines.append(
                f"| memory, one SHViT-S1, {where}: {kind} | **{value:.1f} MB** | "
                f"{MEMORY_MB:.0f} MB | {judged(value <= MEMORY_MB)} |"
            )
    for what, load in (("an empty store", ()), ("one SHViT-S1 to load", (bundle,))):
        times = []
        for number in range(STARTS):
            store = work / f"store-start-{len(load)}"
            with loopback_agent(store, load=load if number == 0 else ()) as agent:
                times.append(agent.started_s)
        lines.append(
            f"| start until it listens, {what}: median of {STARTS} | **{median(times):.2f} s** "
            f"(max {max(times):.2f}) | {START_S} s | {judged(median(times) <= START_S)} |"
        )
    print(*lines[2:], sep="\n", flush=True)
    return lines


def _convert(model: str, targets: str, out: Path) -> Path:
    """A bundle by the command line."""
    words = ["convert", model, "--to", targets, "--precision", "fp32", "-o", out]
    command = [sys.executable, "-m", "edgevit", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT / "benchmarks")
    return out


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="try it; the numbers mean little")
    parser.add_argument("--bundle", type=Path, help="SHViT-S1, converted before")
    parser.add_argument("--out", help="default: docs/results/agent.md, nothing with --quick")
    options = parser.parse_args()
    if options.out is None:
        options.out = "" if options.quick else "docs/results/agent.md"
    if options.quick:
        options.seconds, options.calls, options.pairs, options.runs = 12.0, 400, 1, 40
    return options


if __name__ == "__main__":
    sys.exit(main())

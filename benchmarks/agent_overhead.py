"""The agent's time on one call beyond the engine's, against bare servers; for benchmarks/agent.py."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from loopback_agent import INFER, ROOT, Agent, loopback_agent, request_for

from runtime.bundle import read_bundle

OVERHEAD_MS = 0.5
BLOCKS = 20


def overheads(
    work: Path, bundles: dict[str, Path], calls: int, judged: Callable[[bool], str]
) -> list[str]:
    lines = [
        "| model | payload | engine | call ms | compute ms | call less compute | bare call ms | "
        "overhead ms | limit ms | | agent's part ms | queue, decode, encode ms | inline ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, bundle in bundles.items():
        for isolate in (True, False):
            flag = "--isolate" if isolate else "--no-isolate"
            with loopback_agent(work / f"store-{name}{flag}", flag, load=(bundle,)) as agent:
                found = _overhead(agent, bundle, calls)
            where = "own process" if isolate else "thread"
            stages = ", ".join(f"{ms:.3f}" for ms in found["stages"])
            lines.append(
                f"| {name} | {found['payload'] / 1e3:.0f} KB | {where} | {found['call']:.3f} | "
                f"{found['compute']:.3f} | {found['net']:.3f} | {found['bare']:.3f} | "
                f"**{found['overhead']:.3f}** | {OVERHEAD_MS} | "
                f"{judged(found['overhead'] <= OVERHEAD_MS)} | {found['own']:.3f} | {stages} | "
                f"{found['inline']:.3f} |"
            )
            print(lines[-1], flush=True)
    return lines


def _overhead(agent: Agent, bundle: Path, calls: int) -> dict[str, Any]:
    """Medians in ms, from BLOCKS blocks of each server in turns."""
    request = request_for(agent, bundle)
    data = request.SerializeToString()
    artefact = read_bundle(bundle).artifact_path("tflite")
    times: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            times.setdefault(name, []).append(value)

    with ExitStack() as stack:
        ask = _caller(stack.enter_context(grpc.insecure_channel(agent.address)), data)
        size = str(ask()[1].ByteSize())
        bare = _caller(
            stack.enter_context(grpc.insecure_channel(stack.enter_context(_server(size)))), data
        )
        inline_at = stack.enter_context(_server(size, str(artefact)))
        inline = _caller(stack.enter_context(grpc.insecure_channel(inline_at)), data)
        for block in range(-2, BLOCKS):
            if block == 0:
                times.clear()  # the first two warmed all of them up
            for _ in range(calls // BLOCKS):
                spent, answer = ask()
                told = {k: v.int64_param / 1e3 for k, v in answer.parameters.items()}
                compute = told["compute_us"]
                note(call=spent, compute=compute, net=spent - compute)
                note(own=told["total_us"] - compute, queue=told["queue_us"])
                note(decode=told["decode_us"], encode=told["encode_us"])
            for _ in range(calls // BLOCKS):
                note(bare=bare()[0])
            for _ in range(calls // BLOCKS):
                spent, answer = inline()
                note(inline=spent - answer.parameters["compute_us"].int64_param / 1e3)
    found: dict[str, Any] = {name: median(values) for name, values in times.items()}
    found["overhead"] = found["net"] - found["bare"]
    found["stages"] = [found[stage] for stage in ("queue", "decode", "encode")]
    found["payload"] = len(request.raw_input_contents[0])
    return found


def _caller(channel: Any, data: bytes) -> Callable[[], tuple[float, Any]]:
    """What sends the request: the milliseconds it took, and the answer."""
    ask = channel.unary_unary(INFER.path, response_deserializer=INFER.response.FromString)

    def timed() -> tuple[float, Any]:
        begun = time.perf_counter_ns()
        answer = ask(data, timeout=60)
        return (time.perf_counter_ns() - begun) / 1e6, answer

    return timed


@contextmanager
def _server(*words: str) -> Iterator[str]:
    """The address of benchmarks/agent_echo.py with these arguments."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("agent_echo.py")), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()

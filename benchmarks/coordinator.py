"""What the coordinator of a partitioned model costs, beside a bare gRPC fan-out of the same bytes.

    python benchmarks/coordinator.py [--calls 1000] [--out docs/results/coordinator.md]

Everything runs on this machine over loopback TCP, a process each: four agents with one tiny ONNX
sub-model (engines in threads, so that there are not eight processes), the coordinator, and the
caller. Beside the coordinator a bare grpc.aio server (benchmarks/bare_fanout.py) that sends the same
request to the same agents and gathers their answers, and another one over four bare servers
(benchmarks/agent_echo.py) that only parse and answer. These call ModelInfer for each; the
coordinator has one ModelStreamInfer open to each agent. One caller, one request at a time, blocks of
the three taking turns. Overhead: the time of a call less the slowest worker's own (total_us of its
answer; of a bare server taken as none). Medians. All processes share the cores of this machine:
what four devices do side by side is done here one after another, and counts as overhead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from loopback_agent import ROOT
from result_page import publish

from runtime.wire.descriptors import INFERENCE, methods

sys.path.append(str(ROOT / "tests"))
from agent_tools import running_agent
from coordinator_tools import TinyPlan, coordinating, pictures, request_of, write_plan

from partition.serving.service import STAGES

INFER = methods(INFERENCE)["ModelInfer"]
WORKERS, BLOCKS, WARM = 4, 20, 3
RATIO = 1.3
# Side of the picture, and the limit of the overhead in ms.
CASES = ((32, 1.5), (224, 5.0))


def main() -> int:
    options = _options()
    header = (
        "| picture | call ms p50 | p95 | slowest worker's own ms | **overhead ms** | limit | | "
        "bare fan-out to the agents: overhead ms | ratio | limit | | to bare servers: ms | ratio |"
    )
    load = os.getloadavg()[0]
    lines, splits, limits = [header, "|" + "---|" * 13], [], []
    for side, limit_ms in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = _measure(Path(folder), side, options.calls)
        ratio = found["overhead"] / found["bare overhead"]
        met = found["overhead"] <= limit_ms, ratio <= RATIO
        limits += met
        said = ["met" if each else "**missed**" for each in met]
        lines.append(
            f"| {found['payload'] / 1024:.0f} KiB | {found['call']:.3f} | {found['call95']:.3f} | "
            f"{found['worker']:.3f} | **{found['overhead']:.3f}** | {limit_ms} | {said[0]} | "
            f"{found['bare overhead']:.3f} | **{ratio:.2f}** | {RATIO} | {said[1]} | "
            f"{found['echo']:.3f} | {found['overhead'] / found['echo']:.2f} |"
        )
        parts = " | ".join(f"{found[stage]:.3f}" for stage in STAGES)
        splits.append(f"| {found['payload'] / 1024:.0f} KiB | {parts} | {found['total_us']:.3f} |")
        print(lines[-1], splits[-1], sep="\n", flush=True)
    names = " | ".join(stage.removesuffix("_us").replace("_", " ") for stage in STAGES)
    body = [
        *lines,
        "",
        f"Load average of this machine in the minute before it began: {load:.1f}.",
        "",
        "Where a request's time goes inside the coordinator (ms, medians of each stage by itself; "
        "network, worker queue and compute are of the sub-model that answered last):",
        "",
        f"| picture | {names} | total |",
        "|" + "---|" * (len(STAGES) + 2),
        *splits,
    ]
    publish(
        options.out,
        "The coordinator",
        "python benchmarks/coordinator.py",
        (__doc__ or "").split("\n\n")[2],
        body,
    )
    return int(not all(limits))


def _measure(work: Path, side: int, calls: int) -> dict[str, Any]:
    """Medians in ms, from BLOCKS blocks of each side in turns."""
    plan = write_plan(work / "plan", side=side, layouts=("NCHW",) * WORKERS)
    request = request_of(pictures(1, side=side))
    data = request.SerializeToString()
    with ExitStack() as stack:
        ours, agents = stack.enter_context(_served(plan, work))
        answer_bytes = len(_ask(stack, ours)(data, timeout=60).SerializeToString())
        echoes = [
            stack.enter_context(_script("agent_echo.py", str(answer_bytes))) for _ in range(WORKERS)
        ]
        bare = _script("bare_fanout.py", *(f"{a}=sub{i}" for i, a in enumerate(agents)))
        echo = _script("bare_fanout.py", *(f"{a}=none" for a in echoes))
        asks = {
            "": _ask(stack, ours),
            "bare ": _ask(stack, stack.enter_context(bare)),
            "echo": _ask(stack, stack.enter_context(echo)),
        }
        times: dict[str, list[float]] = {}
        for block in range(-WARM, BLOCKS):
            for name, ask in asks.items():
                for _ in range(calls // BLOCKS):
                    begun = time.perf_counter_ns()
                    answer = ask(data, timeout=60)
                    spent = (time.perf_counter_ns() - begun) / 1e6
                    if block >= 0:
                        for what, value in _row(name, spent, answer).items():
                            times.setdefault(what, []).append(value)
    found: dict[str, Any] = {name: median(values) for name, values in times.items()}
    found["call95"] = np.percentile(times["call"], 95)
    found["payload"] = len(request.raw_input_contents[0])
    return found


def _row(name: str, spent: float, answer: Any) -> dict[str, float]:
    """What one call tells, in ms."""
    if name == "echo":
        return {"echo": spent}
    if answer.parameters["degraded"].bool_param:
        raise SystemExit(f"a worker was left out: {answer}")
    told = {k: v.int64_param / 1e3 for k, v in answer.parameters.items()}
    if name:
        return {"bare overhead": spent - told["total_us"]}
    own = told["worker_queue_us"] + told["compute_us"]
    stages = {stage: told[stage] for stage in (*STAGES, "total_us")}
    return {"call": spent, "worker": own, "overhead": spent - own, **stages}


@contextmanager
def _served(plan: TinyPlan, work: Path) -> Iterator[tuple[str, list[str]]]:
    """The addresses of a coordinator and of its WORKERS agents."""
    with ExitStack() as stack:
        addresses = {}
        for index in range(WORKERS):
            agent = running_agent(
                work / f"store-{index}", "--no-isolate", "--log-level", "error",
                load=[plan.bundle(index)],
            )  # fmt: skip
            addresses[f"pi-{index}"] = stack.enter_context(agent).address
        address = stack.enter_context(coordinating(plan, addresses)).address
        yield address, list(addresses.values())


def _ask(stack: ExitStack, address: str) -> Any:
    """ModelInfer at an address, of bytes."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channel = stack.enter_context(grpc.insecure_channel(address, options))
    return channel.unary_unary(INFER.path, response_deserializer=INFER.response.FromString)


@contextmanager
def _script(name: str, *words: str) -> Iterator[str]:
    """The address of a server among these benchmarks."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(name)), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--out", default="docs/results/coordinator.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

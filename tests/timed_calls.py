"""A caller as a process of its own, which can be in another network: calls, and how long each took.

    python tests/timed_calls.py ADDRESS [--calls 20] [--side 16] [--ref NAME] [--in-flight 1] ...

Prints one JSON object: `calls` with the seconds and the parameters of each answer in the order in
which they came, `seconds` that all took together, sizes of the messages, how many were `asked`. The
first --warm answers are not among `calls`. With --ref no picture is sent but the name of a local
input. With --door 1 the same bytes ask for a model that is not there and are turned away at the
door.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from coordinator_tools import MODEL, answer_of, pictures, request_of, status_of

from runtime.wire.descriptors import INFERENCE, methods

ROOT = Path(__file__).resolve().parents[1]
CALL_S = 120.0
SETTLE, PAUSE_S = 20, 0.3
INFER = methods(INFERENCE)["ModelInfer"]


def timed_calls(address: str, **flags: object) -> dict[str, Any]:
    """What it prints. The process starts in the network of the thread that calls."""
    words = [w for k, v in flags.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, __file__, address, *words],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    given = _options()
    request = request_of(pictures(1, side=given.side))
    request.model_name = given.model
    if given.ref:
        request = INFER.request(model_name=given.model)
        request.parameters["input_ref"].string_param = given.ref
    if given.door:
        request.model_name = "x" * len(given.model)
    data = request.SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    lock, answers, sizes = threading.Lock(), [], []
    left = given.calls + given.warm
    with grpc.insecure_channel(given.address, options) as channel:
        infer = channel.unary_unary(INFER.path, response_deserializer=INFER.response.FromString)

        def caller() -> None:
            nonlocal left
            while True:
                with lock:
                    if not left:
                        return
                    left -= 1
                begun = time.perf_counter()
                try:
                    answer = infer(data, timeout=CALL_S, wait_for_ready=True)
                except grpc.RpcError as error:
                    if not given.door or status_of(error) != "NOT_FOUND":
                        raise
                    answer = INFER.response()
                ended = time.perf_counter()
                sizes.append(answer.ByteSize())
                told = answer_of(answer).parameters if answer.outputs else {}
                answers.append((ended, told | {"seconds": ended - begun}))

        asked = given.calls + given.warm + (0 if given.door else _settle(infer, data))
        threads = [threading.Thread(target=caller) for _ in range(given.in_flight)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counted = answers[given.warm :]
    assert len(counted) == given.calls, "a call failed; its error is above"
    facts = {
        "calls": [told for _, told in counted], "seconds": answers[-1][0] - start,
        "request_bytes": len(data), "answer_bytes": max(sizes), "asked": asked,
    }  # fmt: skip
    sys.stdout.write(json.dumps(facts))


def _settle(infer: Any, data: bytes) -> int:
    """Until two whole answers came in a row: a coordinator may have to learn how slow links are.

    How many calls that were.
    """
    whole = 0
    for count in range(1, SETTLE + 1):
        try:
            answer = infer(data, timeout=CALL_S, wait_for_ready=True)
        except grpc.RpcError as error:
            if status_of(error) != "UNAVAILABLE":
                raise
            whole = 0
            time.sleep(PAUSE_S)
            continue
        whole = 0 if answer.parameters["degraded"].bool_param else whole + 1
        if whole == 2:
            return count
    return SETTLE


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--ref", default="")
    parser.add_argument("--door", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Networks to measure, one order after another, in a process that imports its tools once.

Started as `python -m converters.slim.cost.probe_worker TARGET FD` in the manner of
converters/worker.py: orders are JSON lines on the standard input, the answers JSON lines on the
file descriptor FD, and the vendor's chatter goes with standard output and error to a log. An order
that fails is answered with the reason, and the next is taken. When the input closes, as it does
when the parent ends, the process ends itself, in the middle of its work too.

An order names a folder, and either a part or, in that folder, a network that was prepared already:
    {"folder": F, "precision": P, "family": "module:Class", "part": {...}}  F/short, F/long: bundles
    {"folder": F, "precision": P}                                           F becomes a bundle
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

SHORT, LONG = "short", "long"


def main() -> int:
    """Serve orders until the input ends, which ends the process."""
    target, descriptor = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        unready = _get_ready(target)
        while True:
            order = json.loads(orders.get())
            try:
                if unready is not None:
                    raise unready
                answer = {"done": True, **_carry_out(target, order)}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": _told(error)}
            answers.write(json.dumps(answer) + "\n")
            gc.collect()  # the graphs of this order are rings


def _read(orders: queue.Queue[str]) -> None:
    """Take orders as they come; the end of the input is the end of the process."""
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)


def _get_ready(target: str) -> Exception | None:
    """Import what every order needs; the error, which every order then gets, where that fails."""
    try:
        import torch

        from converters.lower.base import TARGETS
        from converters.slim.cost import bundles  # noqa: F401
        from converters.slim.cost.repeated import look_up_once
        from converters.worker_speed import rest_the_collector, share_provenance

        torch.set_num_threads(1)
        importlib.import_module(TARGETS[target].module)
        rest_the_collector()
        share_provenance()
        look_up_once(target)
    except Exception as error:
        traceback.print_exc()
        return error
    return None


def _carry_out(target: str, order: dict[str, Any]) -> dict[str, Any]:
    from converters.slim.cost.bundles import finish, load, prepare, source_of
    from converters.slim.families.base import Part

    folder, precision = Path(order["folder"]), str(order["precision"])
    if "part" not in order:
        finish(load(folder), target, precision, folder)
        return {}
    part = Part(**{**order["part"], "dims": tuple(order["part"]["dims"])})
    module, _, name = order["family"].partition(":")
    probe = getattr(importlib.import_module(module), name)().probe(part)
    for which, network in ((SHORT, probe.short), (LONG, probe.long)):
        place = folder / which
        place.mkdir(parents=True)
        ref = f"{part.family}-{part.kind}-{part.side}-{'x'.join(map(str, part.dims))}-{which}"
        source = source_of(ref, network, probe.side, part.family, "random")
        finish(prepare(source), target, precision, place)
    return {"times": probe.times}


def _told(error: Exception) -> str:
    """An error of ours as it is, another with its type."""
    text = str(error) if hasattr(error, "exit_code") else f"{type(error).__name__}: {error}"
    return text[:4000]


if __name__ == "__main__":
    sys.exit(main())

"""What partition/simulate.py predicts of a cluster, beside real clusters over shaped links.

    python benchmarks/edvit_simulation.py [--quick] [--links auto] [--out docs/results/edvit-simulation.md]

Real: N agents with one tiny ONNX sub-model each, a coordinator and a caller, a process each. Where
this machine allows, agents and coordinator are hosts of their own (network namespaces, veth and a
bridge) with tbf at both ends of a cable; else a user-space proxy stands before each agent, which
charges every byte. The large picture has as many bytes as one of 224x224x3 in uint8. "one uplink":
the coordinator's cable is as slow as the others and all pictures go through it; "switch": it is not
limited; "local-input": the devices have the picture already. p50: one request at a time.
Throughput: four at a time. Predicted from parts that were measured with nothing limited: each
sub-model's run by itself, one agent at a time; an agent's, the coordinator's and the caller's own
part of a call with N = 1; the CPU time that each worker more costs the coordinator (half of it
taken for sending); bytes on the wire, counted by a proxy. The cell N = 1, unlimited, says therefore
little. All processes share the cores of this machine, and so they do in the simulation
(shared_cores); compute is a small part of every cell. Error: predicted over measured, less 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from result_page import publish
from simulation_parts import (
    BROADCAST,
    LOCAL,
    WIDTHS,
    Parts,
    Served,
    link_of,
    measure_parts,
    on_namespaces,
    on_proxies,
    why_not,
)

from partition.cutting.geometry import Geometry, Keep, scaled
from partition.simulate import Link, Load, Overheads, alike, simulate

RATES = (2_000_000, 10_000_000, 100_000_000, None)
TOPOLOGIES = {"one uplink": BROADCAST, "switch": BROADCAST, "local-input": LOCAL}
SIDES = {"small": 32, "large": 112}
IN_FLIGHT = 4
CALL_S, LEAST, MOST = 12.0, 8, 100  # of the real runs of a cell: about so long, so many calls
VIT_B = Geometry(
    depth=12, heads=12, head_dim=64, embed_dim=768, mlp_dim=3072, tokens=197, classes=10
)
# Heads of a sub-model: the most that let all of them together stay under the 180 MB of edvit.md.
KEEPS = {1: 8, 2: 6, 3: 5, 5: 3, 10: 2, 20: 1, 35: 1, 50: 1}
MACS_PER_S, PICTURE_BYTES = 5e9, 224 * 224 * 3
FLEET_RATES = (2_000_000, 100_000_000)


@dataclass(frozen=True)
class Cell:
    """Predicted, and measured where all answers were whole: seconds, and answers a second."""

    predicted_p50_s: float
    predicted_throughput: float
    p50_s: float = 0.0
    throughput: float = 0.0
    failed: str = ""

    @property
    def p50_error(self) -> float:
        return self.predicted_p50_s / self.p50_s - 1

    @property
    def throughput_error(self) -> float:
        return self.predicted_throughput / self.throughput - 1


def main() -> int:
    options = _options()
    reason = why_not()
    namespaces = not reason if options.links == "auto" else options.links == "namespaces"
    serve = on_namespaces if namespaces else on_proxies
    counts = (1, 3) if options.quick else (1, 2, 3, 4)
    rates = (2_000_000, None) if options.quick else RATES
    load = os.getloadavg()[0]
    how = "network namespaces with tbf" if namespaces else f"a user-space proxy ({reason})"
    body = [f"Links: {how}. Load average before it began: {load:.1f}."]
    with tempfile.TemporaryDirectory() as folder:
        for name, side in SIDES.items():
            work = Path(folder) / name
            parts = measure_parts(work, side, max(counts), 60 if options.quick else 400, serve)
            body += ["", f"## The {name} picture, {4 * 3 * side * side / 1024:.0f} KiB", ""]
            body += [*_parts_table(parts), "", *_head()]
            cells: list[tuple[int | None, Cell]] = []
            for count in counts:
                with serve(work / f"{count}", count, side) as served:
                    for rate in rates:
                        for topology in TOPOLOGIES:
                            cell = measured(served, parts, topology, rate, namespaces)
                            cells.append((rate, cell))
                            body.append(_row(count, rate, topology, cell))
                            print(body[-1], flush=True)
            body += ["", *_summary(cells)]
    body += ["", *fleets(parts)]
    publish(
        options.out,
        "A cluster simulated, and real ones",
        "python benchmarks/edvit_simulation.py" + (" --quick" if options.quick else ""),
        (__doc__ or "").split("\n\n")[2],
        body,
    )
    return 0


def measured(
    served: Served, parts: dict[str, Parts], topology: str, rate: int | None, namespaces: bool
) -> Cell:
    """One cell."""
    mode = TOPOLOGIES[topology]
    hub_rate = None if topology == "switch" else rate
    served.shape(rate, hub_rate)
    link, hub_link = link_of(rate, namespaces), link_of(hub_rate, namespaces)
    fleet = parts[mode].fleet(served.count, link, hub_link, os.cpu_count())
    alone, together = simulate(fleet), simulate(fleet, Load(IN_FLIGHT))
    calls = max(LEAST, min(MOST, int(CALL_S / alone.p50_s)))
    predicted = Cell(alone.p50_s, together.throughput)
    try:
        one = served.ask(mode, calls=calls, warm=2)
        four = served.ask(mode, calls=calls, warm=IN_FLIGHT, in_flight=IN_FLIGHT)
    except AssertionError as error:  # of tests/timed_calls.py
        print(error, file=sys.stderr)
        return replace(predicted, failed="calls failed")
    told: list[dict[str, Any]] = one["calls"] + four["calls"]
    degraded = sum(call["degraded"] for call in told)
    return replace(
        predicted,
        p50_s=median(call["seconds"] for call in one["calls"]),
        throughput=(calls + IN_FLIGHT) / four["seconds"],
        failed=f"{degraded} of {len(told)} answers degraded" if degraded else "",
    )


def fleets(parts: dict[str, Parts]) -> list[str]:
    """Predictions for fleets that do not fit here, from this machine's parts of a call."""
    body = [
        "## Fleets that do not fit here (predicted, not measured)",
        "",
        "ViT-Base cut into N sub-models, each on a device of its own of "
        f"{MACS_PER_S / 1e9:g} GMAC/s (given), pictures of 224x224x3 in uint8. Agent, coordinator, "
        "caller and framing as measured here with the large picture; every device and the "
        "coordinator have cores of their own. One uplink and switch as above; throughput with "
        f"{IN_FLIGHT} requests at a time. The whole model on one such device: "
        f"{VIT_B.macs / MACS_PER_S * 1e3:.0f} ms.",
        "",
    ]
    for rate in FLEET_RATES:
        body += [
            f"Links of {rate / 1e6:g} Mbit/s:",
            "",
            "| N | heads | compute ms | one uplink: p50 ms | answers/s | switch: p50 ms | answers/s | local-input: p50 ms | answers/s |",
            "|" + "---|" * 9,
        ]
        for count, keep in KEEPS.items():
            part = scaled(VIT_B, Keep(keep))
            cells = []
            for topology, mode in TOPOLOGIES.items():
                fleet = alike(
                    count,
                    part.macs / MACS_PER_S,
                    picture_bytes=PICTURE_BYTES,
                    answer_bytes=part.feature_bytes,
                    link=Link(rate),
                    shared_uplink=topology == "one uplink",
                    local_input=mode == LOCAL,
                    overheads=_overheads(parts, mode),
                    patience_s=1e4,
                )
                alone = simulate(fleet, requests=3)  # all alike
                together = simulate(fleet, Load(IN_FLIGHT), requests=16)
                cells.append(f"{alone.p50_s * 1e3:.0f} | {together.throughput:.2f}")
            compute = part.macs / MACS_PER_S * 1e3
            body.append(f"| {count} | {keep} | {compute:.0f} | {' | '.join(cells)} |")
        body.append("")
    return body


def _overheads(parts: dict[str, Parts], mode: str) -> Overheads:
    """Of a mode; the framing is that of the tiny sub-models, whose answers have WIDTHS numbers."""
    own, picture, answer = parts[mode], 4 * 3 * SIDES["large"] ** 2, 4 * WIDTHS[0]
    return Overheads(
        caller_s=own.caller_s,
        accept_s=own.accept_s,
        decode_s=own.decode_s,
        send_s=own.worker_s / 2,
        receive_s=own.worker_s / 2,
        fuse_s=own.fuse_s,
        call_s=own.call_s,
        transport_s=own.transport_s,
        request_bytes=parts[BROADCAST].request_bytes - picture,
        answer_bytes=parts[BROADCAST].answer_bytes - answer,
        name_bytes=parts[LOCAL].request_bytes,
    )


def _parts_table(parts: dict[str, Parts]) -> list[str]:
    lines = [
        "Parts, in ms and bytes of a call to a worker:",
        "",
        "| mode | compute p50 | agent's own | on the way there | coordinator for each worker | accept | decode | fuse | caller | request bytes | answer bytes |",
        "|" + "---|" * 11,
    ]
    for mode, own in parts.items():
        compute = median(time for times in own.compute_s for time in times)
        times = (
            compute, own.call_s, own.transport_s, own.worker_s, own.accept_s, own.decode_s,
            own.fuse_s, own.caller_s,
        )  # fmt: skip
        said = " | ".join(f"{time * 1e3:.3f}" for time in times)
        lines.append(f"| {mode} | {said} | {own.request_bytes:.0f} | {own.answer_bytes:.0f} |")
    return lines


def _head() -> list[str]:
    return [
        "| N | Mbit/s | links | p50 ms | predicted | **error** | answers/s | predicted | **error** |",
        "|" + "---|" * 9,
    ]


def _row(count: int, rate: int | None, topology: str, cell: Cell) -> str:
    speed = "no limit" if rate is None else f"{rate / 1e6:g}"
    if cell.failed:
        expected = f"{cell.predicted_p50_s * 1e3:.1f} | | | {cell.predicted_throughput:.2f} | |"
        return f"| {count} | {speed} | {topology} | {cell.failed} | {expected}"
    return (
        f"| {count} | {speed} | {topology} | {cell.p50_s * 1e3:.1f} | "
        f"{cell.predicted_p50_s * 1e3:.1f} | **{cell.p50_error:+.1%}** | {cell.throughput:.2f} | "
        f"{cell.predicted_throughput:.2f} | **{cell.throughput_error:+.1%}** |"
    )


def _summary(cells: list[tuple[int | None, Cell]]) -> list[str]:
    """The errors, where the links are what takes time and where it is the processes."""
    lines = []
    groups = {"Limited links": (True,), "No limit": (False,), "All": (True, False)}
    for name, limited in groups.items():
        found = [c for rate, c in cells if (rate is not None) in limited and not c.failed]
        if found:
            p50 = [abs(cell.p50_error) for cell in found]
            rates = [abs(cell.throughput_error) for cell in found]
            lines.append(
                f"- {name}, {len(found)} cells: absolute error of p50 {median(p50):.1%} (median), "
                f"{max(p50):.1%} (largest); of the throughput {median(rates):.1%}, {max(rates):.1%}."
            )
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cells, to see that it works")
    parser.add_argument("--links", choices=("auto", "namespaces", "proxies"), default="auto")
    parser.add_argument("--out", default="docs/results/edvit-simulation.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

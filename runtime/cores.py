"""Which cores a measurement is pinned to.

Pinning keeps a run from moving between cores, whose caches and, on a phone's mixed cores, speed
differ. The fastest cores are taken, one thread a physical core while there are enough; of equal
cores the last, because core 0 serves interrupts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

CPU = Path("/sys/devices/system/cpu")


def pick_cores(threads: int) -> list[int] | None:
    """The `threads` logical cores to pin to; None where all are needed or none can be pinned."""
    if sys.platform != "linux":
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if threads >= len(allowed):
        return None
    seen: dict[tuple[int | None, int | None], int] = {}
    ranked = []
    for core in reversed(allowed):
        topology = CPU / f"cpu{core}" / "topology"
        physical = (_number(topology / "physical_package_id"), _number(topology / "core_id"))
        if physical == (None, None):
            physical = (None, core)
        sibling = seen[physical] = seen.get(physical, -1) + 1
        ranked.append((-_speed(core), sibling, -core))
    return sorted(-core for _, _, core in sorted(ranked)[:threads])


def _speed(core: int) -> int:
    """The kernel's own measure of a core: capacity where cores differ, else its top frequency."""
    folder = CPU / f"cpu{core}"
    return _number(folder / "cpu_capacity") or _number(folder / "cpufreq/cpuinfo_max_freq") or 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

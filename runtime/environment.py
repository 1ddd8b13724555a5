"""The device, as far as its operating system tells. What it does not tell is absent."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil

from runtime.run_record import Environment

# What decides which kernels an engine picks, of the flags of x86 and Arm.
SIMD = (  # noqa: SIM905
    "sse4_1 sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_fp16 "
    "avx512_bf16 amx_tile amx_int8 amx_bf16 asimd neon fphp asimdhp asimddp i8mm bf16 sve sve2 sme"
).split()
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
THERMAL = Path("/sys/class/thermal")


def edgevit_version() -> str:
    """The installed version of edgevit; '0+unknown' in a source tree that was never installed."""
    try:
        return metadata.version("edgevit")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def describe() -> Environment:
    """Read the device's description and its state of this moment."""
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    model = _cpu_model(cpuinfo)
    return Environment(
        device=_board() or model or platform.machine() or "unknown",
        hostname=socket.gethostname(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        python=platform.python_version(),
        cpu_model=model,
        cores_physical=psutil.cpu_count(logical=False),
        cores_logical=psutil.cpu_count(logical=True),
        cpu_flags=[flag for flag in SIMD if flag in flags],
        governor=_read(CPUFREQ / "scaling_governor"),
        frequency_mhz=_frequency(),
        temperature_c=temperature(),
        memory_total=psutil.virtual_memory().total,
        load_average=_load(),
    )


def temperature() -> float | None:
    """The hottest thermal zone in degrees Celsius; None where the system shows none."""
    zones = []
    for zone in THERMAL.glob("thermal_zone*/temp"):
        with suppress(TypeError, ValueError):
            zones.append(int(_read(zone) or "") / 1000)
    plausible = [t for t in zones if 0 < t < 150]
    return max(plausible, default=None)


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, and what follows it on Arm boards (Model, Hardware)."""
    found: dict[str, str] = {}
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _cpu_model(cpuinfo: dict[str, str]) -> str | None:
    if platform.system() == "Darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
    return _first([cpuinfo.get("model name"), cpuinfo.get("Hardware"), platform.processor()])


def _board() -> str | None:
    """The board's own name: 'Raspberry Pi 5 Model B Rev 1.0'."""
    return _read(Path("/proc/device-tree/model"))


def _frequency() -> float | None:
    """Current frequency of the first core, MHz."""
    with suppress(TypeError, ValueError):
        return int(_read(CPUFREQ / "scaling_cur_freq") or "") / 1000
    with suppress(Exception):  # psutil raises what the platform raises
        current = psutil.cpu_freq()
        return float(current.current) if current and current.current else None
    return None


def _load() -> float | None:
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _read(path: Path) -> str | None:
    """A small text file of the kernel, stripped; None where it is absent, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None

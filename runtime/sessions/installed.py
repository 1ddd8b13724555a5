"""Which engines are installed here, found out without importing any: they are large and slow."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from runtime.sessions.base import ENGINES, Engine

# Module and package of each engine that can run its files, the first that is there.
# tflite-runtime still runs where ai-edge-litert does not: on 32-bit boards.
PACKAGES = {
    "litert": (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")),
    "onnxruntime": (("onnxruntime", "onnxruntime"),),
    "executorch": (("executorch", "executorch"),),
    "coreml": (("coremltools", "coremltools"),),
}
BESIDE = {"executorch": "torch"}
SYSTEMS = {"coreml": ("darwin", "Core ML runs on macOS only")}


@dataclass(frozen=True)
class Installed:
    """An engine of the table, and the package and version that run it, empty where none is.

    missing says why it cannot run here, None where it can.
    """

    engine: Engine
    package: str
    version: str
    missing: str | None


def installed() -> list[Installed]:
    """Every engine of the table."""
    return [find_engine(engine) for engine in ENGINES]


def find_engine(engine: Engine) -> Installed:
    """What of one engine is here."""
    package, version = "", ""
    for module, distribution in PACKAGES[engine.name]:
        if _there(module):
            package, version = distribution, _version(module, distribution)
            break
    return Installed(engine, package, version, _missing(engine, package))


def _missing(engine: Engine, package: str) -> str | None:
    system, why = SYSTEMS.get(engine.name, (sys.platform, ""))
    if sys.platform != system:
        return why
    beside = BESIDE.get(engine.name)
    if not package:
        lacking = " or ".join(name for _, name in PACKAGES[engine.name])
    elif beside is not None and not _there(beside):
        lacking = beside
    else:
        return None
    return f"{lacking} is not installed: pip install 'edgevit[{engine.extra}]'"


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(module: str, distribution: str) -> str:
    """The installed version; builds of one module (onnxruntime-gpu) have names of their own."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        others = metadata.packages_distributions().get(module, [])
        return metadata.version(others[0]) if others else ""

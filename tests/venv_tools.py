"""Environments of their own for programs that are not of this project's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRITON = "tritonclient[grpc]==2.73.0"
LIMIT_S = 300


def run(*words: object, cwd: Path) -> str:
    """Run a program to its end; its stdout."""
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: Path, *packages: object) -> None:
    """Install from the registry into the environment of an interpreter."""
    words = ["-m", "pip", "--python", python, "install", "--quiet", "--no-compile",
             "--disable-pip-version-check"]  # fmt: skip
    run(sys.executable, *words, *packages, cwd=python.parent)


def make_venv(folder: Path) -> Path:
    """An empty environment; its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / "bin" / "python"

"""A tiny model in a file of its own, and the command line run on it as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = "tinynet:net"
CLASSES = 10
SIZE = 32
LIMIT_S = 300
TARGETS = ["coreml", "tflite", "executorch", "onnx"]
FILES = {
    "coreml": "model.mlpackage",
    "tflite": "model.tflite",
    "executorch": "model.pte",
    "onnx": "model.onnx",
}

MODEL = '''
"""Three convolutions, one BatchNorm to fold, ten classes, pictures of 32 x 32."""

import torch
from torch import nn

print("the model's own chatter")


class Net(nn.Module):
    pretrained_cfg = {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "input_size": (3, 32, 32),
    }

    def __init__(self, width=16, resize=None):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.c = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 10)
        self.resize = resize

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.c(torch.relu(self.b(x))))
        if self.resize:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode=self.resize)
        return self.head(x.mean((2, 3)))


def net():
    torch.manual_seed(0)
    model = Net()
    for value in model.parameters():
        value.data *= 2
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 1.5)
    return model


def wide():
    """2.4 MB of weights in the two last layers."""
    torch.manual_seed(0)
    return Net(width=512)


def bicubic():
    """One op that coremltools has no translation of."""
    torch.manual_seed(0)
    return Net(resize="bicubic")


def no_module():
    return 42


def broken():
    raise ValueError("the weights of [/this] model are elsewhere")


def features():
    return nn.Conv2d(3, 8, 3)
'''


def write_model(folder: Path) -> Path:
    """Put tinynet.py into a folder; give the folder."""
    (folder / "tinynet.py").write_text(MODEL)
    return folder


@dataclass(frozen=True)
class Answer:
    """What a run of the command line left."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object that stdout holds, and nothing else."""
        value, end = json.JSONDecoder().raw_decode(self.out)
        assert isinstance(value, dict) and self.out[end:].strip() == "", self.out
        return value


def start(*words: object, cwd: Path, env: dict[str, str] | None = None, **more: Any) -> Any:
    """A process of `python -m edgevit`, its two streams on pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgevit", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **more,
    )


def finish(process: Any, timeout: float = LIMIT_S) -> Answer:
    """Wait for a started process. A traceback is never an answer, nor is a process that hangs."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends its workers
        process.communicate()
        raise
    assert "Traceback" not in out + err, out + err
    return Answer(process.returncode, out, err)


def edgevit(
    *words: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = LIMIT_S
) -> Answer:
    """Run `python -m edgevit` to its end."""
    return finish(start(*words, cwd=cwd, env=env), timeout)


def hide(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which the packages are not installed, for Python and all its children."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        f"HIDDEN = {set(packages)!r}\n"
        "find = PathFinder.find_spec.__func__\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        "    return None if name.split('.')[0] in HIDDEN else find(cls, name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def screen_of(terminal: int) -> str:
    """All that a closed pseudo-terminal was told; it comes in pieces, a little later."""
    seen = bytearray()
    with suppress(OSError):  # EIO is the end on Linux
        while piece := os.read(terminal, 65536):
            seen += piece
    return seen.decode(errors="replace")


def temporary_folders(parent: Path) -> list[str]:
    """What a conversion hides beside its goal while it works."""
    return sorted(p.name for p in parent.iterdir() if p.name.startswith(".edgevit-"))


@contextmanager
def small_disk(folder: Path, size: str, *options: str) -> Iterator[Path]:
    """A file system of its own, mounted at `folder`; PermissionError where that is not allowed."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs"]
    if subprocess.run([*words, str(folder)], capture_output=True, check=False).returncode:
        raise PermissionError("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)

"""Fixtures for all tests."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cli_tools import CLASSES, TINY, Answer, edgevit, write_model
from made_once import made_once

from runtime.serving.logs import JsonLines

# On a busy machine the threads of a small operator mostly wait for each other.
torch.set_num_threads(1)

# What is printed to a pipe has its own width, which nobody's terminal is to change.
os.environ.pop("COLUMNS", None)

# A runner in the background (nohup, some CI) hands these down as ignored, to the processes that the
# tests start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What torchvision looks up while it is imported.
TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@pytest.fixture(autouse=True)
def no_log_stays() -> Iterator[None]:
    """A server that a test runs in its own process logs to a stderr that is closed soon after."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h.formatter, JsonLines)]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def timm() -> Iterator[ModuleType]:
    """timm, also where torchvision's compiled part does not match the CPU build of torch."""
    library = None
    if not _torchvision_operators_load():
        library = torch.library.Library("torchvision", "DEF")
        for schema in TORCHVISION_SCHEMAS:
            library.define(schema)
    import timm

    yield timm
    del library  # kept alive until here: the schemas go with it


def _torchvision_operators_load() -> bool:
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None, "timm needs torchvision"
    try:
        for binary in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(binary)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


@dataclass(frozen=True)
class Conversion:
    """One run of `edgevit convert --to all --json` on the tiny model, in its folder `home`."""

    home: Path
    bundle: Path
    answer: Answer


@pytest.fixture(scope="session")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The tiny model converted to every target by the real command line; not to be changed."""

    def convert(home: Path) -> None:
        write_model(home)
        (home / "names.txt").write_text("\n".join(f"class {i}" for i in range(CLASSES)))
        words = ["--to", "all", "-o", "made/out", "--labels", "names.txt", "--json"]
        answer = edgevit("convert", TINY, *words, cwd=home)
        assert answer.code == 0, answer.err
        (home / "answer.json").write_text(json.dumps(asdict(answer)))

    home = made_once(tmp_path_factory, "conversion", convert)
    answer = Answer(**json.loads((home / "answer.json").read_text()))
    return Conversion(home, home / "made" / "out", answer)


@pytest.fixture
def bundle(conversion: Conversion, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may spoil."""
    return Path(shutil.copytree(conversion.bundle, tmp_path / "bundle"))

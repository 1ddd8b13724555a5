"""Fixtures for all tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

# What torchvision looks up while it is imported.
TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


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

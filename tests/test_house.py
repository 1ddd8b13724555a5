"""The rules of the house that no single test would notice: arrows, sizes, a light runtime."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("edgevit", "converters", "runtime", "partition")
LONGEST = 500

LIGHT = """
import importlib, pkgutil, sys
import runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    importlib.import_module(module.name)
print(*sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""


def test_arrows_point_one_way():
    """The contracts of pyproject.toml, by import-linter."""
    tool = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run(
        [str(tool), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout and "KEPT" in found.stdout


def test_the_runtime_imports_no_converter_and_no_torch():
    heavy = ["torch", "edgevit", "converters", "partition", "onnx", "coremltools", "executorch"]
    found = subprocess.run(
        [sys.executable, "-c", LIGHT, *heavy], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks", "examples"])
def test_no_file_is_longer_than_can_be_read(folder):
    for file in (ROOT / folder).rglob("*.py"):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{file.relative_to(ROOT)} has {lines} lines"


def test_test_files_have_names_of_their_own():
    """pytest imports them without packages, so that two of one name hide each other."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_every_link_of_the_pages_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert len(pages) > 10 and broken == []

"""Every script in examples/ runs as its first lines say, and prints what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("own")
    return run("convert_own_module.py", "bundle", cwd=folder), folder / "bundle"


def test_own_module_is_folded_and_proven(own_module: tuple[str, Path]) -> None:
    printed, bundle = own_module
    assert len(re.findall(r"^(onnx|executorch): passed, error over spread \d", printed, re.M)) == 2
    before, after = map(int, re.search(r"(\d+) to (\d+) ops", printed).groups())  # type: ignore[union-attr]
    assert after < before
    assert {p.name for p in bundle.iterdir()} >= {"model.onnx", "model.pte", "manifest.json"}


def test_profile_two_writes_the_page(own_module: tuple[str, Path], tmp_path: Path) -> None:
    bundle = own_module[1]
    files = (str(bundle / "model.onnx"), str(bundle / "model.pte"))
    printed = run("profile_two.py", *files, "page.html", cwd=tmp_path)
    assert re.search(r"^ratio \d+\.\d+, blocks", printed, re.M)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_zoo_model(tmp_path: Path) -> None:
    printed = run("convert_zoo_model.py", "shvit_s1", "bundle", cwd=tmp_path)
    assert "weights random, seed 0" in printed
    assert len(re.findall(r"model\.(onnx|tflite), [\d.]+ MB, passed", printed)) == 2


def test_small_vit_is_one_that_can_be_partitioned() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "edgevit", "inspect", "small_vit:digits_vit", "--json"],
        env=os.environ | {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{EXAMPLES.parent}"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(said.stdout)  # of "small_vit.py"
    assert found["proof"]["params_before"] == 523402 and found["classes"] == 10


def test_no_example_goes_untested() -> None:
    """cluster_demo.py takes minutes: `make demo` runs it, and it fails where a step of it does."""
    tested = Path(__file__).read_text(encoding="utf-8")
    demo = (EXAMPLES.parent / "Makefile").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in tested or f"examples/{script.name} " in demo

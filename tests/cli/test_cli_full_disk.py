"""A full disk, a quota, a read-only place: one clear error, and nothing half-written beside it."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import TINY, small_disk


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    try:
        with small_disk(folder, "1m", *options) as disk:
            yield disk
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    yield from mounted(tmp_path / "disk")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes nothing, whoever asks."""
    yield from mounted(tmp_path / "disk", "ro")


def test_full_before_the_workers(cli, disk):
    """The reference alone, nine pictures of 128 x 128, takes 1.8 MB."""
    answer = cli("convert", TINY, "--size", 128, "--to", "onnx", "-o", disk / "new" / "out")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        f"error: cannot write the bundle {disk / 'new' / 'out'}: the disk is full; make room. "
        "Nothing was left behind\n"
    )
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("target", ["onnx", pytest.param("coreml", marks=pytest.mark.slow)])
def test_full_in_a_worker(cli, disk, target):
    """Python's writer says so itself; Core ML's is C++ and says something else."""
    answer = cli("convert", "tinynet:wide", "--to", target, "-o", disk / "out", "--json")
    assert answer.code == 2
    assert answer.json()["error"] == (
        f"cannot write the bundle {disk / 'out'}: the disk is full; make room. "
        "Nothing was left behind"
    )
    assert list(disk.iterdir()) == []


def test_full_place_for_temporary_files(cli, home, disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    answer = cli("convert", "tinynet:wide", "--to", "onnx", "-o", "out")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        "error: cannot write temporary files (TMPDIR names their folder): the disk is full; "
        "make room. Nothing was left behind\n"
    )
    assert list(disk.glob("edgevit-*")) == [] and not (home / "out").exists()


def test_read_only_place(cli, read_only_disk):
    answer = cli("convert", TINY, "--to", "onnx", "-o", read_only_disk / "new" / "out")
    assert answer.code == 2 and answer.out == ""
    assert "the file system is read-only; give another folder" in answer.err
    assert list(read_only_disk.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file over 64 KiB from this process and its children; the reference is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_limit_on_the_size_of_a_file(cli, home, small_files):
    answer = cli("convert", TINY, "--to", "onnx", "-o", "out")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        f"error: cannot write the bundle {home / 'out'}: no room, a file would be larger than this "
        "process may write (ulimit -f). Nothing was left behind\n"
    )
    assert [p.name for p in home.iterdir() if p.name != "__pycache__"] == ["tinynet.py"]
